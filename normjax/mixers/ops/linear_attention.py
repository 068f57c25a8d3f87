"""Linear attention: sums over keys in the place of weights."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT, einsum, precision_of
from normjax.core.moments import at_least_float32


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, epsilon: float = 1e-6
) -> jax.Array:
    """o_i = (q_i . sum_j k_j v_j^T) / (q_i . sum_j k_j + epsilon), per head.

    q and k are features that are not negative (Katharopoulos et al., 2020). Products
    and sums are in at least float32; where an array is bfloat16, the sums alone. Of
    q (k^T v) and (q k^T) v the cheaper order is taken: O(N K V + M K V) or
    O(N M (K + V)) multiply-adds a head.

    Args:
      q: [B, N, H, K].  k: [B, M, H, K].  v: [B, M, H, V].
      epsilon: added to the denominator, so that an all-zero query gives 0.

    Returns:
      [B, N, H, V] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> q = jnp.array([[1.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 1, 2)  # [B, L, H, K]
      >>> k = jnp.array([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
      >>> v = jnp.array([2.0, 4.0]).reshape(1, 2, 1, 1)
      >>> print(mixers.linear_attention(q, k, v, epsilon=0.0).ravel())
      [2. 3.]
    """
    exact = precision_of(q, k, v) is EXACT
    dtype = jnp.result_type(q, k, v, jnp.float32) if exact else jnp.bfloat16
    operands = (t.astype(dtype) for t in (q, k, v))
    channels_last = functools.partial(_attend, _CHANNELS_LAST, epsilon=epsilon)
    tokens_last = functools.partial(_attend, _TOKENS_LAST, epsilon=epsilon)
    return jax.lax.platform_dependent(*operands, tpu=tokens_last, default=channels_last)


class _Order(NamedTuple):
    """How heads lie while they are multiplied.

    Attributes:
      arrange: [B, N, H, K] -> such an array, and `restore` back.
      q, k, v, o: its axes as einsum names them.  tokens: axis of the tokens.
    """

    arrange: Callable[[jax.Array], jax.Array]
    restore: Callable[[jax.Array], jax.Array]
    q: str
    k: str
    v: str
    o: str
    tokens: int


def _tokens_last(t: jax.Array) -> jax.Array:
    b, n, heads, width = t.shape
    return jnp.swapaxes(t.reshape(b, n, -1), 1, 2).reshape(b, heads, width, n)


def _tokens_second(t: jax.Array) -> jax.Array:
    b, heads, width, n = t.shape
    return jnp.swapaxes(t.reshape(b, -1, n), 1, 2).reshape(b, n, heads, width)


def _swap(t: jax.Array) -> jax.Array:
    return jnp.swapaxes(t, 1, 2)


# One transposition here, fused with what made q, k and v, where the products would each
# make their own. On a TPU that of all channels before they are heads: the tokens fill
# its lanes, of which 64 channels would leave half empty, and heads come for free.
_CHANNELS_LAST = _Order(_swap, _swap, "bhnk", "bhmk", "bhmv", "bhnv", 2)
_TOKENS_LAST = _Order(_tokens_last, _tokens_second, "bhkn", "bhkm", "bhvm", "bhvn", 3)


def _attend(order: _Order, q, k, v, *, epsilon: float) -> jax.Array:
    n, m, key, value = q.shape[1], k.shape[1], q.shape[-1], v.shape[-1]
    q, k, v = (order.arrange(t) for t in (q, k, v))

    def product(result, **named):
        names = ",".join(named)
        operands = (t.astype(q.dtype) for t in named.values())
        return einsum(f"{names}->{result}", *operands)

    if n * m * (key + value) > key * value * (n + m):
        sums = product("bhkv", **{order.k: k, order.v: v})
        o = product(order.o, **{order.q: q, "bhkv": sums})
        total = jnp.sum(at_least_float32(k), axis=order.tokens)
        normalizer = product("bhn", **{order.q: q, "bhk": total})
    else:
        weights = product("bhnm", **{order.q: q, order.k: k})
        o = product(order.o, **{"bhnm": weights, order.v: v})
        normalizer = jnp.sum(weights, axis=-1)
    channels = 5 - order.tokens  # the other of axes 2 and 3
    return order.restore(o / jnp.expand_dims(normalizer + epsilon, channels))
