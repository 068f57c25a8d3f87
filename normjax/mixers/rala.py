"""Rank-augmented linear attention of feature maps."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.accumulate import einsum, precision_of
from normjax.core.dense import SplitDense
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers.base import (
    MIXERS,
    merge_heads,
    normalized_heads,
    softmax_attention,
    split_heads,
    tokens_of,
)
from normjax.mixers.cores import depthwise_layer, only_valid
from normjax.mixers.grid import GridMixer
from normjax.mixers.rotary import grid_angles, rotate_pairs, turn_pairs
from normjax.mixers.sequence import only_tokens

_CACHED = 512  # positions that stay in the cache of a CPU core


class Augmented(GridMixer):
    """Base: y = proj(gate * (attention + 5x5 depthwise convolution of v)).

    q, k, v and the gate are one projection of the map; queries and keys turn with row
    and column (`rotary.grid_angles`).

    Attributes: those of GridMixer; K is a multiple of 4.
    """

    reads: ClassVar[tuple[str, ...]] = ("qkvo",)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False is padding, which no position sees.
          train: passed to `qk_norm`.

        Raises:
          UserError: D does not split into heads of a multiple of 4 channels.
        """
        (_, height, width, features), inner = x.shape, self._width(x)
        project = SplitDense(4, inner, self.qkv_bias, name="qkvo", **self._dense())
        q, k, v, gate = project(x)
        v = only_valid(v, mask)
        near = depthwise_layer(self, "lepe", v, (5, 5, inner))
        q, k, v = (split_heads(tokens_of(t), self.num_heads) for t in (q, k, v))
        size = q.shape[-1]
        if size % 4:
            raise UserError(f"heads of {size} channels: rotation needs a multiple of 4")
        mask = None if mask is None else mask.reshape(x.shape[0], -1)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        angles = grid_angles(height, width, size).reshape(height * width, -1)
        o = merge_heads(self._attend(q, k, v, angles, mask)).astype(near.dtype)
        return self._finish((o.reshape(near.shape) + near) * gate, features)

    def _attend(self, q, k, v, angles, mask):
        raise NotImplementedError


@MIXERS.register("rala", "grid", "mask")
class RankAugmentedLinearAttention(Augmented):
    """Rank-augmented linear attention, RALA (Fan et al., 2025).

    With f(t) = elu(t) + 1 and R the rotation of a position,

        w = softmax_j(mean_i(f(q_i)) . f(k_j) / sqrt(K))        k'_j = N w_j f(k_j)
        o_i = R f(q_i) . mean_j(R k'_j v_j^T) / (f(q_i) . mean_j(k'_j) + 1e-6)
        y = proj((o + 5x5 depthwise convolution of v) * W_o x)

    per head: tokens that matter weigh more in the sum, which raises its rank, and so
    does the product with the gate. O(L K D) multiply-adds; sums in at least float32.

    Attributes: those of Augmented.
    """

    def _attend(self, q, k, v, angles, mask):
        dtype, length = at_least_float32(q).dtype, q.shape[1]
        turn = tuple(
            jnp.asarray(f(angles)[None, :, None], dtype) for f in (np.cos, np.sin)
        )
        operands = (only_tokens(q, mask), k, only_tokens(v, mask), turn, mask)
        blocks = functools.partial(_rank_augmented, _block_size(length))
        whole = functools.partial(_rank_augmented, length)
        return jax.lax.platform_dependent(*operands, cpu=blocks, default=whole)


def _block_size(length: int) -> int:
    """The largest divisor of `length` up to _CACHED, unless that is small."""
    divisors = (n for n in range(min(length, _CACHED), 0, -1) if length % n == 0)
    size = next(divisors)
    return size if 4 * size > _CACHED else length


def _rank_augmented(size, q, k, v, turn, mask):
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


@MIXERS.register("rala_softmax", "grid", "mask")
class GatedSoftmaxAttention(Augmented):
    """The softmax attention of the deeper stages of RAVLT (Fan et al., 2025).

    o = softmax(R q (R k)^T / sqrt(K)) v per head, R the rotation of a position, and
    y = proj((o + 5x5 depthwise convolution of v) * W_o x). O(L**2 D) multiply-adds.

    Attributes: those of Augmented.
    """

    def _attend(self, q, k, v, angles, mask):
        q, k = rotate_pairs(q, angles), rotate_pairs(only_tokens(k, mask), angles)
        visible = None if mask is None else mask[:, None, None, :]
        return softmax_attention(q, k, v, mask=visible)
