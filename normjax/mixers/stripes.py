"""Attention inside stripes of a feature map (CSwin)."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.errors import UserError
from normjax.mixers.base import MIXERS
from normjax.mixers.cores import (
    FocusedLinear,
    SimplifiedLinear,
    Softmax,
    depthwise_layer,
    only_valid,
)
from normjax.mixers.grid import GridMixer, merge, partition


class Stripes(nn.Module):
    """A core inside stripes, plus a 3x3 depthwise convolution of v (LePE).

    The convolution sees zeros beyond the stripe (Dong et al., 2022).

    Attributes:
      core: factory of the core, which shares this scope.
      stripe: height and width.
      dtype: of the computation.  param_dtype: of the parameters.
    """

    core: Callable[..., nn.Module]
    stripe: tuple[int, int]
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """q, k, v: [B, H, W, D] -> same.  mask: bool [B, H, W]."""
        core, grid = self.core(), q.shape[1:3]
        nn.share_scope(self, core)
        q, k, v = (partition(t, self.stripe) for t in (q, k, v))
        mask = None if mask is None else partition(mask, self.stripe)
        v = only_valid(v, mask)
        lepe = depthwise_layer(self, "lepe", v, (3, 3, v.shape[-1]))
        return merge(core(q, k, v, mask=mask) + lepe, grid)


class CrossShaped(GridMixer):
    """Base of mixers in crosses of stripes (CSwin; Dong et al., 2022).

    Half of the channels and heads attends inside vertical stripes over all rows, half
    inside horizontal ones over all columns. A grid no larger than `split_size` is one
    stripe with all channels and heads.

    Attributes: those of GridMixer and
      split_size: width of a stripe.
    """

    split_size: int = 7

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. A table of positions fixes the size of a stripe.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: stripes that do not cover the grid, an odd number of heads or
            channels, initialised for other stripes, or D does not split into heads.
        """
        qkv, (height, width) = self._project(x, mask, train), x.shape[1:3]
        if max(height, width) <= self.split_size:
            branches = {"whole": (height, width)}
        else:
            branches = {
                "vertical": (height, self.split_size),
                "horizontal": (self.split_size, width),
            }
        count, dim = len(branches), qkv[0].shape[-1]
        if self.num_heads % count or dim % count:
            raise UserError(
                f"{self.num_heads} heads of width {dim} do not split into vertical "
                "and horizontal stripes: both numbers must be even"
            )
        split = (jnp.split(t, count, -1) for t in qkv)
        outputs = [
            self._branch(name, branches[name], count)(q, k, v, mask)
            for name, q, k, v in zip(branches, *split, strict=True)
        ]
        return self._finish(jnp.concatenate(outputs, -1), x.shape[-1])

    def _branch(self, name: str, stripe: tuple[int, int], count: int) -> Stripes:
        arguments = self._core_arguments()
        arguments["num_heads"] = self.num_heads // count

        def core():
            return self.core(**arguments)

        return Stripes(core, stripe, self.dtype, self.param_dtype, name=name)


@MIXERS.register("cross_shaped_window", "grid", "mask")
class CrossShapedWindowAttention(CrossShaped):
    """Softmax attention inside crosses of stripes (CSwin; Dong et al., 2022).

        softmax(q k^T / sqrt(K)) v + conv3x3(v)

    per head and stripe, then a projection. O(L**1.5 s D) multiply-adds on a square map
    with s = `split_size`. Softmax in at least float32.

    Attributes: those of CrossShaped.
    """

    core: ClassVar[type[nn.Module]] = Softmax


@MIXERS.register("cross_shaped_window_sla", "grid", "mask")
class CrossShapedWindowSimplifiedLinearAttention(CrossShaped):
    """`sla` inside crosses of stripes (SLAB-CSwin; Guo et al., 2024).

    The core of `sla` per stripe, plus conv3x3(v). The published models use it where
    the map is one stripe. O(L K D) multiply-adds.

    Attributes: those of CrossShaped and of SimplifiedLinearAttention.
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = SimplifiedLinear


@MIXERS.register("cross_shaped_window_focused_linear", "grid", "mask")
class CrossShapedWindowFocusedLinearAttention(CrossShaped):
    """`focused_linear` inside crosses of stripes (FLatten-CSwin; Han et al., 2023).

    The core of `focused_linear` per stripe, plus conv3x3(v). The released code runs
    with one stripe only. O(L K D) multiply-adds.

    Attributes: those of CrossShaped and of FocusedLinearAttention.
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = FocusedLinear
