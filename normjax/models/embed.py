"""Layers that make the maps of a pyramid: from an image, and from the map before."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.models.layers import STEMS, Factory


@STEMS.register("conv_norm", "grid")
class ConvNorm(nn.Module):
    """One strided convolution and a norm: norm(conv(x)).

    Stem of Swin and PVT (kernel and stride 4), of CSwin (7, stride 4, padding 2);
    merging of PVT (2, stride 2) and CSwin (3, stride 2, padding 1).

    Attributes:
      dim: width of the result.  kernel_size, stride, padding: of the convolution.
    """

    dim: int
    norm: Factory
    activation: Factory
    kernel_size: int = 4
    stride: int = 4
    padding: int = 0
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / stride, W / stride, dim].

        Raises:
          UserError: H or W is no multiple of `stride`.
        """
        stride, size = self.stride, self.kernel_size
        _check_divisible("conv_norm", x, stride)
        init = nn.initializers.truncated_normal(1 / (size * math.sqrt(x.shape[-1])))
        x = nn.Conv(
            self.dim,
            (size, size),
            strides=(stride, stride),
            padding=self.padding,
            kernel_init=init,
            dtype=self.dtype,
            name="proj",
        )(x)
        return self.norm(name="norm", dtype=self.dtype)(x, train=train)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        return [FoldSite("norm", self.norm(parent=None), writer="proj")]


@STEMS.register("patch_merge", "grid")
class PatchMerge(nn.Module):
    """The four neighbours side by side, a norm and a projection (Liu et al., 2021).

    y = norm([x_00 | x_10 | x_01 | x_11]) W, indices row and column, without bias.

    Attributes:
      dim: width of the result.
    """

    dim: int
    norm: Factory
    activation: Factory
    dtype: Dtype | None = None

    writes: ClassVar[str | None] = "reduction"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / 2, W / 2, dim].

        Raises:
          UserError: H or W is odd.
        """
        _check_divisible("patch_merge", x, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        arguments = {"kernel_init": trunc_normal, "dtype": self.dtype}
        return Dense(self.dim, use_bias=False, name="reduction", **arguments)(x)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the projection that reads it."""
        return [FoldSite("norm", self.norm(parent=None), readers=("reduction",))]


def _check_divisible(name: str, x: jax.Array, by: int) -> None:
    height, width = x.shape[1:3]
    if height % by or width % by:
        raise UserError(f"{name}: a map of {height}x{width} does not divide by {by}")
