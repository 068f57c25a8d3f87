"""What the mixers share: their registry, head splitting, the linear-attention sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.core.registry import Registry

MIXERS = Registry("mixer")

trunc_normal = nn.initializers.truncated_normal(0.02)


def tokens_of(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, L, C] with the positions in row-major order."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, L, D] -> [B, L, H, K] with D = H * K.

    Raises:
      ValueError: D is no multiple of `num_heads`.
    """
    if x.shape[-1] % num_heads:
        raise ValueError(f"width {x.shape[-1]} does not split into {num_heads} heads")
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, L, H, K] -> [B, L, H * K]."""
    return x.reshape(*x.shape[:-2], -1)


def linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, epsilon: float = 1e-6
) -> jax.Array:
    """o_i = (q_i . sum_j k_j v_j^T) / (q_i . sum_j k_j + epsilon), per head.

    q and k are features that are not negative (Katharopoulos et al., 2020). Sums are
    accumulated in at least float32. Of q (k^T v) and (q k^T) v the cheaper order is
    taken: O(N K V + M K V) or O(N M (K + V)) multiply-adds a head.

    Args:
      q: [B, N, H, K].  k: [B, M, H, K].  v: [B, M, H, V].
      epsilon: added to the denominator, so that an all-zero query gives 0.

    Returns:
      [B, N, H, V] in at least float32.
    """
    q, k, v = map(at_least_float32, (q, k, v))
    n, m, key, value = q.shape[1], k.shape[1], q.shape[-1], v.shape[-1]
    normalizer = jnp.einsum("bnhk,bhk->bnh", q, jnp.sum(k, axis=1)) + epsilon
    if n * m * (key + value) > key * value * (n + m):
        o = jnp.einsum("bnhk,bhkv->bnhv", q, jnp.einsum("bmhk,bmhv->bhkv", k, v))
    else:
        o = jnp.einsum("bhnm,bmhv->bnhv", jnp.einsum("bnhk,bmhk->bhnm", q, k), v)
    return o / normalizer[..., None]
