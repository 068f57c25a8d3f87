"""Simplified linear attention over whole feature maps."""

from typing import ClassVar

from normjax.core.registry import Spec
from normjax.mixers.base import MIXERS
from normjax.mixers.grid.whole_map import WholeMapAttention


@MIXERS.register("sla", "grid", "mask")
class SimplifiedLinearAttention(WholeMapAttention):
    """Simplified linear attention (SLA) of SLAB (Guo et al., 2024).

    With q' = relu(q), k' = relu(k + P) and P a learned table over positions,

        o_i = (q'_i . sum_j k'_j v_j^T) / (q'_i . sum_j k'_j + epsilon)

    per head, plus a depthwise convolution of v whose one kernel is shared by all
    heads, then a projection. No scale. O(L K D) multiply-adds with K = D / num_heads;
    sums in at least float32.

    Attributes:
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads, qkv_features, qk_norm, dtype, param_dtype, kernel_init: see `Mixer`.
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "sla"  # pyright: ignore[reportIncompatibleVariableOverride]
