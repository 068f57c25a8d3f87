"""Focused linear attention over whole feature maps."""

from typing import ClassVar

from normjax.core.registry import Spec
from normjax.mixers.base import MIXERS
from normjax.mixers.grid.whole_map import WholeMapAttention


@MIXERS.register("focused_linear", "grid", "mask")
class FocusedLinearAttention(WholeMapAttention):
    """Focused linear attention of FLatten Transformer (Han et al., 2023).

    With P a learned table over positions, p = `focusing_factor` and s a learned
    positive vector,

        q' = f((relu(q) + 1e-6) / s)   k' = f((relu(k + P) + 1e-6) / s)
        f(x) = |x| x^p / |x^p|         (elementwise power, norms over all D channels)
        o_i = (q'_i . mean_j k'_j v_j^T) / (q'_i . mean_j k'_j + epsilon)

    per head, plus a depthwise convolution of v whose one kernel is shared by all
    heads, then a projection. O(L K D) multiply-adds with K = D / num_heads; features
    and sums in at least float32.

    Attributes:
      focusing_factor: p; larger is sharper.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads, qkv_features, qk_norm, dtype, param_dtype, kernel_init: see `Mixer`.
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "focused_linear"  # pyright: ignore[reportIncompatibleVariableOverride]
