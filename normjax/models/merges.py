"""Merges: from a map to one of fewer positions, other than those that are stems too."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.dense import trunc_normal
from normjax.core.folding import FoldSite
from normjax.mixers.grid.global_context import SqueezedConv
from normjax.models.block import sites_of
from normjax.models.layers import Factory
from normjax.models.stems import STEMS, strided_conv


@STEMS.register("norm_conv", "grid")
class NormConv(nn.Module):
    """A norm and one strided convolution: conv(norm(x)), the merge of DaViT.

    Attributes:
      dim: width of the result.
      norm: factory.  activation: factory, unused: there is none.
      kernel_size, stride, padding: of the convolution.
      pad: zeros behind the norm, on the right and below, up to multiples of the stride.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models, norms
      >>> layer_norm = norms.build("layer_norm")
      >>> merge = models.NormConv(dim=16, norm=layer_norm, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = merge.init_with_output(jax.random.key(1), x, train=False)
      >>> y.shape, variables["params"]["proj"]["kernel"].shape
      ((1, 2, 2, 16), (2, 2, 8, 16))
    """

    dim: int
    norm: Factory
    activation: Factory
    kernel_size: int = 2
    stride: int = 2
    padding: int = 0
    pad: bool = False
    dtype: Dtype | None = None

    writes: ClassVar[str | None] = "proj"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / stride, W / stride, dim].

        Raises:
          UserError: H or W is no multiple of `stride`, without `padding` and `pad`.
        """
        x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        return strided_conv(self, "norm_conv", x)

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the map gets another."""
        del dim
        return {}

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that reads it, where that sees no zeros."""
        norm = self.norm(parent=None)
        if self.pad or self.padding:
            obstacle = "its reader sees zeros around the map"
            return [FoldSite("norm", norm, obstacle=obstacle)]
        return [FoldSite("norm", norm, readers=("proj",))]


def _halving(dim: int, use_bias: bool, dtype: Any, name: str) -> nn.Conv:
    """3x3 at every second position."""
    size = {"kernel_size": (3, 3), "strides": (2, 2), "padding": 1}
    init = {"kernel_init": trunc_normal, "dtype": dtype, "name": name}
    return nn.Conv(dim, use_bias=use_bias, **size, **init)


@STEMS.register("squeezed_reduction", "grid")
class SqueezedReduction(nn.Module):
    """The merge of GC ViT (Hatamizadeh et al., 2023).

        y = norm(conv3x3(h + f(h))),  h = norm(x)

    f a depthwise convolution whose channels are weighed by what they say on average
    (see `mixers.grid.global_context.SqueezedConv`); the other one has stride 2 and no
    bias.

    Attributes:
      dim: width of the result.
      norm: factory.  activation: factory, unused: it is GELU.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models, norms
      >>> layer_norm = norms.build("layer_norm")
      >>> merge = models.SqueezedReduction(dim=16, norm=layer_norm, activation=None)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = merge.init_with_output(jax.random.key(1), x, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 16), ['conv', 'norm1', 'norm2', 'reduction'])
    """

    dim: int
    norm: Factory
    activation: Factory
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), dim]."""
        x = self.norm(name="norm1", dtype=self.dtype)(x, train=train)
        x = x + SqueezedConv(dtype=self.dtype, name="conv")(x)
        x = _halving(self.dim, False, self.dtype, "reduction")(x)
        return self.norm(name="norm2", dtype=self.dtype)(x, train=train)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms, the second with the convolution that it reads."""
        norm, obstacle = self.norm(parent=None), "its output is added to what it makes"
        return [
            FoldSite("norm1", norm, obstacle=obstacle),
            FoldSite("norm2", norm, writer="reduction"),
        ]


@STEMS.register("squeezed_stem", "grid")
class SqueezedStem(nn.Module):
    """A 3x3 convolution of stride 2, then `squeezed_reduction` (GC ViT).

    Attributes:
      dim: width of the result.
      norm: factory.  activation: factory, unused: it is GELU.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import models, norms
      >>> layer_norm = norms.build("layer_norm")
      >>> stem = models.SqueezedStem(dim=8, norm=layer_norm, activation=None)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 8), ['down', 'proj'])
    """

    dim: int
    norm: Factory
    activation: Factory
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / 4), ceil(W / 4), dim]."""
        x = _halving(self.dim, True, self.dtype, "proj")(x)
        return self._down(name="down")(x, train=train)

    @nn.nowrap
    def _down(self, **where: Any) -> SqueezedReduction:
        return SqueezedReduction(
            self.dim, self.norm, self.activation, dtype=self.dtype, **where
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms of its second part."""
        return list(sites_of("down", self._down(parent=None)))
