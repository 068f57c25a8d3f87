"""Rank-augmented linear attention of feature maps, and the softmax beside it."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.masks import only_tokens, only_valid
from normjax.mixers.ops.rank_augmented import rank_augmented_attention
from normjax.mixers.ops.rotary import grid_angles, rotate_pairs
from normjax.mixers.steps import dense_of, depthwise_layer, normalized_heads


@MIXERS.register("rala", "grid", "mask")
class RankAugmentedLinearAttention(Mixer):
    """Rank-augmented linear attention, RALA (Fan et al., 2025).

    With f(t) = elu(t) + 1 and R the rotation of a position,

        w = softmax_j(mean_i(f(q_i)) . f(k_j) / sqrt(K))        k'_j = N w_j f(k_j)
        o_i = R f(q_i) . mean_j(R k'_j v_j^T) / (f(q_i) . mean_j(k'_j) + 1e-6)
        y = proj((o + 5x5 depthwise convolution of v) * W_o x)

    per head: tokens that matter weigh more in the sum, which raises its rank, and so
    does the product with the gate. O(L K D) multiply-adds; sums in at least float32.

    Attributes:
      qkv_bias: bias of the projection of queries, keys, values and gate.
      num_heads: heads; each has K = D / num_heads channels, a multiple of 4.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.RankAugmentedLinearAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['lepe_bias', 'lepe_kernel', 'proj', 'qkvo']
    """

    qkv_bias: bool = True

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
        q, k, v, near, gate = _projected(self, x, mask)
        mask = None if mask is None else mask.reshape(x.shape[0], -1)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        o = rank_augmented_attention(q, k, v, _angles(x, q), mask)
        o = merge_heads(o).astype(near.dtype).reshape(near.shape)
        return Dense(x.shape[-1], name="proj", **dense_of(self))((o + near) * gate)


@MIXERS.register("rala_softmax", "grid", "mask")
class GatedSoftmaxAttention(Mixer):
    """The softmax attention of the deeper stages of RAVLT (Fan et al., 2025).

    o = softmax(R q (R k)^T / sqrt(K)) v per head, R the rotation of a position, and
    y = proj((o + 5x5 depthwise convolution of v) * W_o x). O(L**2 D) multiply-adds.

    Attributes:
      qkv_bias: bias of the projection of queries, keys, values and gate.
      num_heads: heads; each has K = D / num_heads channels, a multiple of 4.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.GatedSoftmaxAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['lepe_bias', 'lepe_kernel', 'proj', 'qkvo']
    """

    qkv_bias: bool = True

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
        q, k, v, near, gate = _projected(self, x, mask)
        mask = None if mask is None else mask.reshape(x.shape[0], -1)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        angles = _angles(x, q)
        q, k = rotate_pairs(q, angles), rotate_pairs(only_tokens(k, mask), angles)
        visible = None if mask is None else mask[:, None, None, :]
        o = softmax_attention(q, k, v, mask=visible)
        o = merge_heads(o).astype(near.dtype).reshape(near.shape)
        return Dense(x.shape[-1], name="proj", **dense_of(self))((o + near) * gate)


def _projected(module: Any, x: jax.Array, mask: jax.Array | None):
    """Heads q, k, v [B, L, H, K], 5x5 convolution of v and gate, both [B, H, W, D]."""
    width = module.qkv_features or x.shape[-1]
    project = SplitDense(4, width, module.qkv_bias, name="qkvo", **dense_of(module))
    q, k, v, gate = project(x)
    v = only_valid(v, mask)
    near = depthwise_layer(module, "lepe", v, (5, 5, width))
    q, k, v = (split_heads(tokens_of(t), module.num_heads) for t in (q, k, v))
    if q.shape[-1] % 4:
        size = q.shape[-1]
        raise UserError(f"heads of {size} channels: rotation needs a multiple of 4")
    return q, k, v, near, gate


def _angles(x: jax.Array, q: jax.Array) -> np.ndarray:
    """[L, K / 2], the angles by which heads q of the map x turn."""
    _, height, width, _ = x.shape
    return grid_angles(height, width, q.shape[-1]).reshape(height * width, -1)
