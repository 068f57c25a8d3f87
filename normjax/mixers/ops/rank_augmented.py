"""Rank-augmented linear attention (RALA; Fan et al., 2025)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.accumulate import einsum, precision_of
from normjax.core.moments import at_least_float32
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.rotary import turn_pairs

_CACHED = 512  # positions that stay in the cache of a CPU core


def rank_augmented_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    angles: np.ndarray,
    mask: jax.Array | None = None,
) -> jax.Array:
    """RALA per head: with f(t) = elu(t) + 1 and R the rotation of a position,

        w = softmax_j(mean_i(f(q_i)) . f(k_j) / sqrt(K))        k'_j = N w_j f(k_j)
        o_i = R f(q_i) . mean_j(R k'_j v_j^T) / (f(q_i) . mean_j(k'_j) + 1e-6)

    O(L K D) multiply-adds; sums in at least float32.

    Args:
      q, k, v: [B, L, H, K].  angles: [L, K / 2], of `rotary.grid_angles`.
      mask: bool [B, L]; False is padding.

    Returns:
      [B, L, H, K] in at least float32.
    """
    dtype, length = at_least_float32(q).dtype, q.shape[1]
    turn = tuple(jnp.asarray(f(angles)[None, :, None], dtype) for f in (np.cos, np.sin))
    operands = (only_tokens(q, mask), k, only_tokens(v, mask), turn, mask)
    blocks = functools.partial(_in_blocks, _block_size(length))
    whole = functools.partial(_in_blocks, length)
    return jax.lax.platform_dependent(*operands, cpu=blocks, default=whole)


def _block_size(length: int) -> int:
    """The largest divisor of `length` up to _CACHED, unless that is small."""
    divisors = (n for n in range(min(length, _CACHED), 0, -1) if length % n == 0)
    size = next(divisors)
    return size if 4 * size > _CACHED else length


def _in_blocks(size, q, k, v, turn, mask):
    """o [B, L, H, K] of RALA, in blocks of `size` positions; queries are 0 at padding.

    Args:
      q, k, v: [B, L, H, K].  turn: cosines and sines, [1, L, 1, K / 2].
    """

    def split(t):
        """[B, L, ...] -> [L / size, B, size, ...]."""
        return jnp.moveaxis(t.reshape(t.shape[0], -1, size, *t.shape[2:]), 1, 0)

    def joined(t):
        return jnp.moveaxis(t, 0, 1).reshape(q.shape[0], -1, *t.shape[3:])

    product = functools.partial(einsum, precision=precision_of(q, k, v))
    known = jnp.ones(q.shape[:2], bool) if mask is None else mask
    count = jnp.maximum(jnp.sum(known, 1), 1).astype(turn[0].dtype).reshape(-1, 1, 1)
    queries, keys, values = (split(t) for t in (q, k, v))
    turns, valid = (split(turn[0]), split(turn[1])), split(known)[..., None]
    asked = jax.lax.map(
        lambda t: jnp.sum(jnp.where(t[1][..., None], _positive(t[0]), 0), 1),
        (queries, valid),
    )
    typical = jnp.sum(asked, 0)[:, None] / count[..., None] * q.shape[-1] ** -0.5
    scores = jax.lax.map(lambda k: jnp.sum(typical * _positive(k), -1), keys)
    # Finite, so that an image without any position has no NaN.
    scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min / 2)
    weights = split(jax.nn.softmax(joined(scores), 1) * count)

    def add(sums, block):
        k, v, w, here, turn = block
        k = jnp.where(here[..., None], _positive(k) * w[..., None], 0)
        turned = turn_pairs(k, *turn)
        state = product("bmhk,bmhv->bhkv", turned, at_least_float32(v))
        return (sums[0] + state, sums[1] + jnp.sum(k, 1)), None

    like = jnp.zeros_like(typical[:, 0])
    zeros = jnp.zeros((*like.shape, v.shape[-1]), like.dtype), like
    (state, total), _ = jax.lax.scan(add, zeros, (keys, values, weights, valid, turns))

    def read(block):
        q, turn = _positive(block[0]), block[1]
        o = product("blhk,bhkv->blhv", turn_pairs(q, *turn), state)
        return o / (jnp.sum(q * total[:, None], -1) + 1e-6 * count)[..., None]

    return joined(jax.lax.map(read, (queries, turns)))


def _positive(t: jax.Array) -> jax.Array:
    """elu(t) + 1, without the detour through expm1, in at least float32."""
    t = at_least_float32(t)
    return jnp.where(t > 0, t + 1, jnp.exp(jnp.minimum(t, 0)))
