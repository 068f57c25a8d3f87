"""Gated slot attention: softmax attention to a bounded memory that forgets.

    Sk_t = Sk_{t-1} diag(d_t) + k_t s_t^T       w_t = softmax(Sk_t^T q_t)
    Sv_t = diag(d_t) Sv_{t-1} + s_t v_t^T       o_t = Sv_t^T w_t

with M slots a head, each with a decay d and a share s of every token (GSA; Zhang et
al., 2024). The second line is the recurrence of `decay`, the first one its transpose:
the decays are those of what is read, not of what is looked up.
"""

import functools

import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum, precision_of
from normjax.mixers.ops import decay
from normjax.mixers.ops.decay_wide import halves, joined, power_of_two

_CHUNK = 64

Pair = tuple[jax.Array, jax.Array]


def gated_slots(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    shares: jax.Array,
    log_decay: jax.Array,
    states: Pair | None = None,
) -> tuple[jax.Array, Pair]:
    """o [B, L, H, V] and (Sk [B, H, K, M], Sv [B, H, M, V]) after the last position.

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].
      shares: s, [B, L, H, M]; 0 where a token leaves nothing.
      log_decay: log d, [B, L, H, M], at most 0.
      states: those before the first position; None for zeros.

    Returns:
      All in at least float32.
    """
    keys, values = (None, None) if states is None else states
    scores, keys = value_decayed(q, k, shares, log_decay, keys)
    weights = jax.nn.softmax(scores, -1)
    o, values = decay.chunked(weights, shares, v, log_decay, values)
    return o, (keys, values)


def value_decayed(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    state: jax.Array | None = None,
    *,
    chunk: int = _CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """S_t = S_{t-1} diag(d_t) + k_t v_t^T, o_t = S_t^T q_t: a decay a value channel.

    As `decay.chunked`: blocks side by side, inside them pairs of halves, so that every
    decay applied is a product of given ones.

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].
      log_decay: [B, L, H, V], at most 0.
      state: [B, H, K, V] before the first position; None for zeros.
      chunk: positions a block, a power of two.

    Returns:
      o [B, L, H, V] and the last state, in at least float32.
    """
    product = functools.partial(einsum, precision=precision_of(q, k, v))
    dtype = jnp.result_type(q, k, v, jnp.float32)
    length = q.shape[1]
    size = min(chunk, power_of_two(length))

    def split(t):
        """[B, L, H, X] -> [B, H, n, C, X], zeros behind the last position."""
        pad = ((0, 0), (0, -length % size), (0, 0), (0, 0))
        t = jnp.pad(t.astype(dtype), pad)
        return jnp.moveaxis(t.reshape(t.shape[0], -1, size, *t.shape[2:]), 3, 1)

    q, k, v, factor = split(q), split(k), split(v), jnp.exp(split(log_decay))
    inside, since, left, total = _inside(product, q, k, v, factor)
    added = product("bhnck,bhncv->nbhkv", k, left)
    if state is None:
        state = jnp.zeros(added.shape[1:], dtype)

    def hand_on(state, inputs):
        new, kept = inputs
        return kept * state + new, state

    kept = jnp.moveaxis(total, 2, 0)
    state, before = jax.lax.scan(hand_on, state.astype(dtype), (added, kept))
    o = inside + since * product("bhnck,nbhkv->bhncv", q, before)
    o = jnp.moveaxis(o, 1, 3)
    return o.reshape(o.shape[0], -1, *o.shape[3:])[:, :length], state


def _inside(product, q, k, v, factor):
    """What the positions of a block give each other, and the block as a whole.

    Args:
      product: an einsum.
      q, k, v, factor: [..., C, K or V], C a power of two.

    Returns:
      o [..., C, V]; the decays since the start of the block, v with those until its
      end, and the product of all [..., 1, V].
    """
    lead, size, half = q.shape[:-2], q.shape[-2], 1
    o = jnp.sum(q * k, -1, keepdims=True) * v
    since = total = factor

    while half < size:
        (_, q1), (k0, _), (v0, v1), (o0, o1) = (halves(t, half) for t in (q, k, v, o))
        since0, since1 = halves(since, half)
        weights = product("...ik,...jk->...ij", q1, k0)
        o1 = o1 + since1 * product("...ij,...jv->...iv", weights, v0)
        pairs = total.reshape(*lead, -1, 2, 1, total.shape[-1])
        t0, t1 = pairs[..., 0, :, :], pairs[..., 1, :, :]
        o, since, v = joined(o0, o1), joined(since0, since1 * t0), joined(v0 * t1, v1)
        total = (t0 * t1).reshape(*lead, -1, total.shape[-1])
        half *= 2
    return o, since, v, total
