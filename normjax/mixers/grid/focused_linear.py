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
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.FocusedLinearAttention(num_heads=2, focusing_factor=3)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['dwc_bias', 'dwc_kernel', 'positional_encoding', 'proj', 'qkv', 'scale']
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[Spec] = "focused_linear"  # pyright: ignore[reportIncompatibleVariableOverride]
