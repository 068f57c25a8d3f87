"""Linear attention over whole feature maps."""

from typing import ClassVar

import flax.linen as nn
import jax

from normjax.mixers.base import MIXERS
from normjax.mixers.cores import FocusedLinear, SimplifiedLinear
from normjax.mixers.grid import GridMixer


class WholeGrid(GridMixer):
    """Base of mixers in which every position attends to the whole map."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of positions fixes H and W.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: initialised for another grid, or D does not split into heads.
        """
        core, (q, k, v) = self._own_core(), self._project(x, mask, train)
        return self._finish(core(q, k, v, mask=mask), x.shape[-1])


@MIXERS.register("sla", "grid", "mask")
class SimplifiedLinearAttention(WholeGrid):
    """Simplified linear attention (SLA) of SLAB (Guo et al., 2024).

    With q' = relu(q), k' = relu(k + P) and P a learned table over positions,

        o_i = (q'_i . sum_j k'_j v_j^T) / (q'_i . sum_j k'_j + epsilon)

    per head, plus a depthwise convolution of v whose one kernel is shared by all
    heads, then a projection. No scale. O(L K D) multiply-adds with K = D / num_heads;
    sums in at least float32.

    Attributes: those of GridMixer and
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = SimplifiedLinear


@MIXERS.register("focused_linear", "grid", "mask")
class FocusedLinearAttention(WholeGrid):
    """Focused linear attention of FLatten Transformer (Han et al., 2023).

    With P a learned table over positions, p = `focusing_factor` and s a learned
    positive vector,

        q' = f((relu(q) + 1e-6) / s)   k' = f((relu(k + P) + 1e-6) / s)
        f(x) = |x| x^p / |x^p|         (elementwise power, norms over all D channels)
        o_i = (q'_i . mean_j k'_j v_j^T) / (q'_i . mean_j k'_j + epsilon)

    per head, plus a depthwise convolution of v whose one kernel is shared by all
    heads, then a projection. O(L K D) multiply-adds with K = D / num_heads; features
    and sums in at least float32.

    Attributes: those of GridMixer and
      focusing_factor: p; larger is sharper.
      kernel_size: of the depthwise convolution.
      epsilon: added to the denominator.
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = FocusedLinear
