"""Stems: from images to tokens, and from a map of tokens to a smaller one."""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.materialize import materialized
from normjax.core.patches import patch_convolution
from normjax.core.registry import Registry
from normjax.mixers.ops.partition import padded
from normjax.models.block import sites_of
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory
from normjax.norms.base import includes_activation

STEMS = Registry("stem")
"""What makes tokens or maps of images, and of larger maps, by key.

`stem=` and `merge=` of models. A row has `name` and `make`, the class.

Example:
  >>> from normjax.models import STEMS
  >>> "conv_unit" in STEMS, STEMS["conv_unit"].make.__name__
  (True, 'ConvUnitStem')
"""


@STEMS.register("patch", "grid")
class PatchEmbed(nn.Module):
    """Non-overlapping patches, each mapped linearly (Dosovitskiy et al., 2021).

    Attributes:
      dim: width of the tokens.  patch_size: side of a patch in pixels.
      norm, activation: factories, unused: it is linear.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax.models.stems import PatchEmbed
      >>> stem = PatchEmbed(dim=8, norm=None, activation=None, patch_size=4)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, variables["params"]["proj"]["kernel"].shape
      ((1, 2, 2, 8), (4, 4, 3, 8))
    """

    dim: int
    norm: Factory
    activation: Factory
    patch_size: int = 16
    dtype: Dtype | None = None

    writes: ClassVar[str | None] = "proj"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / patch_size, W / patch_size, dim].

        Raises:
          UserError: H or W is no multiple of `patch_size`.
        """
        del train
        side = self.patch_size
        if x.shape[1] % side or x.shape[2] % side:
            height, width = x.shape[1:3]
            raise UserError(
                f"stem 'patch': {height}x{width} pixels do not split into patches of "
                f"{side}x{side} (patch_size)"
            )
        fan_in = side * side * x.shape[-1]
        init = nn.initializers.truncated_normal(math.sqrt(1 / fan_in))
        return nn.Conv(
            self.dim,
            (side, side),
            strides=(side, side),
            padding="VALID",
            kernel_init=init,
            dtype=self.dtype,
            conv_general_dilated=patch_convolution,
            name="proj",
        )(x)

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        del dim
        return {}


@STEMS.register("conv", "grid")
class ConvStem(nn.Module):
    """3x3 convolutions, each but the last with norm and activation (Xiao et al., 2021).

    Attributes:
      dim: width of the tokens.  strides: one per convolution.
      norm, activation: factories.
      hidden: width of the convolutions before the last; None for dim / 2.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, norms
      >>> from normjax.models.stems import ConvStem
      >>> relu, batch_norm = activations.build("relu"), norms.build("batch_norm")
      >>> stem = ConvStem(dim=8, norm=batch_norm, activation=relu, strides=(2, 2))
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 8), ['conv_0', 'conv_1', 'norm_0'])
    """

    dim: int
    norm: Factory
    activation: Factory
    strides: tuple[int, ...] = (2, 1)
    hidden: int | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / s, W / s, dim] with s the product of strides."""
        last = len(self.strides) - 1
        hidden = self.hidden or max(1, self.dim // 2)
        for i, stride in enumerate(self.strides):
            x = nn.Conv(
                self.dim if i == last else hidden,
                (3, 3),
                strides=(stride, stride),
                padding=1,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            if i < last:
                norm = self.norm(name=f"norm_{i}", dtype=self.dtype)
                x = norm(x, train=train)
                if not includes_activation(norm):
                    x = self.activation(name=f"act_{i}")(x)
        return x

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms, each with the convolution that it reads."""
        norm, inner = self.norm(parent=None), range(len(self.strides) - 1)
        return [FoldSite(f"norm_{i}", norm, writer=f"conv_{i}") for i in inner]

    @property
    def writes(self) -> str | None:
        """The layer that makes the tokens."""
        return f"conv_{len(self.strides) - 1}"

    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"hidden": self.hidden or max(1, dim // 2)}


def strided_conv(stem: Any, key: str, x: jax.Array) -> jax.Array:
    """The convolution `proj` of a stem that says its kernel, stride and padding.

    Args:
      stem: a module, under `key`.  x: [B, H, W, C].

    Raises:
      UserError: patches that do not cover the map.
    """
    stride, size = stem.stride, stem.kernel_size
    if stem.pad:
        x = padded(x, (stride, stride))
    elif not stem.padding:
        _check_divisible(key, x, stride)
    init = nn.initializers.truncated_normal(1 / (size * math.sqrt(x.shape[-1])))
    return nn.Conv(
        stem.dim,
        (size, size),
        strides=(stride, stride),
        padding=stem.padding,
        kernel_init=init,
        dtype=stem.dtype,
        name="proj",
    )(x)


@STEMS.register("conv_norm", "grid")
class ConvNorm(nn.Module):
    """One strided convolution and a norm: norm(conv(x)).

    Stem of Swin and PVT (kernel and stride 4), of CSwin (7, stride 4, padding 2);
    merging of PVT (2, stride 2) and CSwin (3, stride 2, padding 1).

    Attributes:
      dim: width of the result.
      norm: factory.  activation: factory, unused: there is none.
      kernel_size, stride, padding: of the convolution.
      pad: zeros on the right and below up to multiples of the stride.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models, norms
      >>> stem = models.ConvNorm(dim=8, norm=norms.build("layer_norm"), activation=None)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 8), ['norm', 'proj'])
    """

    dim: int
    norm: Factory
    activation: Factory
    kernel_size: int = 4
    stride: int = 4
    padding: int = 0
    pad: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / stride, W / stride, dim], rounded as torch does.

        Raises:
          UserError: H or W is no multiple of `stride`, without `padding` and `pad`.
        """
        x = strided_conv(self, "conv_norm", x)
        return materialized(self.norm(name="norm", dtype=self.dtype)(x, train=train))

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        return [FoldSite("norm", self.norm(parent=None), writer="proj")]


def _corners(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / 2, W / 2, 4 C]: x_00, x_10, x_01, x_11 (row, column)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _corners_of_slices(x: jax.Array) -> jax.Array:
    """The same, in half of the cycles of a TPU; on a CPU it takes longer."""
    parts = [
        jax.lax.slice(x, (0, i, j, 0), x.shape, (1, 2, 2, 1))
        for j in (0, 1)
        for i in (0, 1)
    ]
    return jax.lax.concatenate(parts, 3)


@STEMS.register("patch_merge", "grid")
class PatchMerge(nn.Module):
    """The four neighbours side by side, a norm and a projection (Liu et al., 2021).

    y = norm([x_00 | x_10 | x_01 | x_11]) W, indices row and column, without bias.

    Attributes:
      dim: width of the result.
      norm: factory.  activation: factory, unused: there is none.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models, norms
      >>> layer_norm = norms.build("layer_norm")
      >>> merge = models.PatchMerge(dim=16, norm=layer_norm, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = merge.init_with_output(jax.random.key(1), x, train=False)
      >>> y.shape, variables["params"]["reduction"]["kernel"].shape
      ((1, 2, 2, 16), (32, 16))
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
        x = jax.lax.platform_dependent(x, tpu=_corners_of_slices, default=_corners)
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


@STEMS.register("conv_unit", "grid")
class ConvUnitStem(nn.Module):
    """activation(norm(conv(x))): the stem of MobileNets, and of small ResNets.

    Attributes:
      dim: width of the result.  kernel_size, stride: of the convolution.
      norm, activation: factories.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> relu, batch_norm = activations.build("relu"), norms.build("batch_norm")
      >>> stem = models.ConvUnitStem(dim=8, norm=batch_norm, activation=relu)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, bool((y >= 0).all()), sorted(variables)
      ((1, 4, 4, 8), True, ['batch_stats', 'params'])
    """

    dim: int
    norm: Factory
    activation: Factory
    kernel_size: int = 3
    stride: int = 2
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), dim]."""
        return self._unit(name="unit")(x, train=train)

    @nn.nowrap
    def _unit(self, **where) -> ConvUnit:
        return ConvUnit(
            features=self.dim,
            norm=self.norm,
            activation=self.activation,
            kernel_size=self.kernel_size,
            stride=self.stride,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        return list(sites_of("unit", self._unit(parent=None)))


@STEMS.register("conv_pool", "grid")
class ConvPoolStem(ConvUnitStem):
    """max3x3(activation(norm(conv(x)))), the maximum at stride 2 (He et al., 2016).

    Attributes:
      dim: width of the result.  kernel_size, stride: of the convolution.
      norm, activation: factories.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> relu, batch_norm = activations.build("relu"), norms.build("batch_norm")
      >>> stem = models.ConvPoolStem(dim=8, norm=batch_norm, activation=relu)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, bool((y >= 0).all())
      ((1, 2, 2, 8), True)
    """

    kernel_size: int = 7

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / 4, W / 4, dim] at stride 2, rounded up."""
        x = self._unit(name="unit")(x, train=train)
        around: Any = ((1, 1), (1, 1))
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=around)
