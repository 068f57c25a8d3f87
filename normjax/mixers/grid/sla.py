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
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.SimplifiedLinearAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['dwc_bias', 'dwc_kernel', 'positional_encoding', 'proj', 'qkv']
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "sla"  # pyright: ignore[reportIncompatibleVariableOverride]
