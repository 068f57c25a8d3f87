"""Rank-augmented linear attention of feature maps."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.attention.base import (
    MIXERS,
    SplitDense,
    merge_heads,
    normalized_heads,
    softmax_attention,
    split_heads,
    tokens_of,
    trunc_normal,
)
from normjax.attention.cores import depthwise_layer, only_valid
from normjax.attention.rotary import grid_angles, rotate_pairs
from normjax.attention.sequence import only_tokens
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


class Augmented(nn.Module):
    """Base: y = proj(gate * (attention + 5x5 depthwise convolution of v)).

    q, k, v and the gate are one projection of the map; queries and keys turn with row
    and column (`rotary.grid_angles`).

    Attributes:
      num_heads: heads; each has K = D / num_heads channels, a multiple of 4.
      qkv_features: width D of queries, keys, values and gate; None for that of x.
      qkv_bias: bias of their projection.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    qkv_features: int | None = None
    qkv_bias: bool = True
    qk_norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

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
        (_, height, width, features), inner = x.shape, self.qkv_features or x.shape[-1]
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"kernel_init": self.kernel_init, **types}
        project = SplitDense(4, inner, self.qkv_bias, name="qkvo", **dense)
        q, k, v, gate = project(x)
        v = only_valid(v, mask)
        near = depthwise_layer(self, "lepe", v, (5, 5, inner))
        q, k, v = (split_heads(tokens_of(t), self.num_heads) for t in (q, k, v))
        size = q.shape[-1]
        if size % 4:
            raise UserError(f"heads of {size} channels: rotation needs a multiple of 4")
        mask = None if mask is None else mask.reshape(len(x), -1)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        angles = grid_angles(height, width, size).reshape(height * width, -1)
        o = merge_heads(self._attend(q, k, v, angles, mask)).astype(near.dtype)
        o = (o.reshape(near.shape) + near) * gate
        return nn.Dense(features, name="proj", **dense)(o)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"qkv_features": self.qkv_features or dim}

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
        q, k, v = (at_least_float32(t) for t in (q, k, v))
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        queries = only_tokens(q, mask)
        count = q.shape[1]
        if mask is not None:
            count = jnp.maximum(jnp.sum(mask, 1), 1).astype(q.dtype)
            count = count.reshape(-1, 1, 1, 1)
        typical = jnp.sum(queries, 1, keepdims=True) / count
        scores = jnp.sum(typical * k, -1, keepdims=True) * q.shape[-1] ** -0.5
        if mask is not None:
            # Finite, so that an image without any position has no NaN.
            lowest = jnp.finfo(scores.dtype).min / 2
            scores = jnp.where(mask[:, :, None, None], scores, lowest)
        k = only_tokens(k * jax.nn.softmax(scores, 1) * count, mask)
        state = jnp.einsum("bmhk,bmhv->bhkv", rotate_pairs(k, angles), v)
        total = jnp.einsum("blhk,bhk->blh", q, jnp.sum(k, 1))
        o = jnp.einsum("blhk,bhkv->blhv", rotate_pairs(q, angles), state)
        return o / (total[..., None] + 1e-6 * count)


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
