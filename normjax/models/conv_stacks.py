"""Stems of several convolutions."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.activations import ACTIVATIONS
from normjax.core.dense import trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.core.registry import Part
from normjax.models.base import in_stages
from normjax.models.block import sites_of
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory
from normjax.models.separable import UNIT_NORM
from normjax.models.stems import STEMS, ConvNorm
from normjax.norms.base import includes_activation


@STEMS.register("conv_stack", "grid")
class ConvStack(nn.Module):
    """Convolutions, each with a norm, and activations between them.

        x <- activation(norm(conv(x))), and norm(conv(x)) at the end

    (ViG, ViG-H, RAVLT, iFormer), or norm(activation(conv(x))) all along (STViT).

    Attributes:
      dim: width of the result.
      norm, activation: factories.
      strides: one per convolution.
      kernel_sizes: one for all or one per convolution.
      hidden: widths before the last; None for dim / 2 each.
      activation_first: the activation stands before the norm, at the end as well.
      use_bias: biases of the convolutions.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> gelu, layer_norm = activations.build("gelu"), norms.build("layer_norm")
      >>> stem = models.ConvStack(dim=8, norm=layer_norm, activation=gelu)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 8), ['conv_0', 'conv_1', 'norm_0', 'norm_1'])
    """

    dim: int
    norm: Factory
    activation: Factory
    strides: tuple[int, ...] = (2, 2)
    kernel_sizes: int | tuple[int, ...] = 3
    hidden: tuple[int, ...] | None = None
    activation_first: bool = False
    use_bias: bool = True
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / s, W / s, dim] with s the product of strides.

        Zeros lie one wide around the map.

        Raises:
          UserError: as many kernels or widths as there are no convolutions for.
        """
        last = len(self.strides) - 1
        sizes = in_stages(self.kernel_sizes, last + 1)
        hidden = (max(1, self.dim // 2),) * last if self.hidden is None else self.hidden
        widths = (*in_stages(tuple(hidden), last), self.dim)
        for i, stride in enumerate(self.strides):
            x = nn.Conv(
                widths[i],
                (sizes[i], sizes[i]),
                strides=(stride, stride),
                padding=1,
                use_bias=self.use_bias,
                kernel_init=trunc_normal,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            norm = self.norm(name=f"norm_{i}", dtype=self.dtype)
            active = not includes_activation(norm)
            if self.activation_first and active:
                x = self.activation(name=f"act_{i}")(x)
            x = norm(x, train=train)
            if not self.activation_first and active and i < last:
                x = self.activation(name=f"act_{i}")(x)
        return x

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms, each with the convolution that it reads, if it reads it."""
        norm, obstacle = self.norm(parent=None), "it reads what is behind an activation"
        first = self.activation_first
        return [
            FoldSite(f"norm_{i}", norm, obstacle=obstacle)
            if first
            else FoldSite(f"norm_{i}", norm, writer=f"conv_{i}")
            for i in range(len(self.strides))
        ]


@STEMS.register("conv_units", "grid")
class ConvUnitsStem(nn.Module):
    """Units activation(norm(conv(x))), one after the other.

    With a maximum at the end, the stem of timm's HaloNet; with a norm or a convolution
    there, those of SG-Former and GroupMamba.

    Attributes:
      dim: width of the result.
      norm, activation: factories.
      hidden: widths of the units before the last; of all before a convolution at the
        end.
      strides: one per unit.
      kernel_sizes: one for all or one per unit, odd.
      pool: the maximum of 3x3 positions at stride 2.
      unit_norm: factory of the norms of the units; None for `norm`.
      unit_activation: factory of their activations; None for `activation`.
      activate_last: the last unit has an activation, too.
      end: what comes behind them: "none", "norm", or "conv_norm", a convolution 3 x 3
        of stride 2 with bias and `norm`.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> relu, batch_norm = activations.build("relu"), norms.build("batch_norm")
      >>> stem = models.ConvUnitsStem(dim=8, norm=batch_norm, activation=relu)
      >>> images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
      >>> y, variables = stem.init_with_output(jax.random.key(1), images, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 2, 8), ['unit_0', 'unit_1', 'unit_2'])
    """

    dim: int
    norm: Factory
    activation: Factory
    hidden: tuple[int, ...] = (24, 32)
    strides: tuple[int, ...] = (2, 1, 1)
    kernel_sizes: int | tuple[int, ...] = 3
    pool: bool = True
    unit_norm: Factory | None = None
    unit_activation: Factory | None = None
    activate_last: bool = True
    end: str = "none"
    dtype: Dtype | None = None

    parts: ClassVar[Mapping[str, Part]] = {
        "unit_norm": UNIT_NORM,
        "unit_activation": Part(ACTIVATIONS),
    }

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / s, W / s, dim], rounded up, s all strides.

        Raises:
          UserError: an unknown `end`, an even kernel, or as many kernels or widths as
            there are no units for.
        """
        if self.end not in _ENDS:
            raise UserError(one_of("end", self.end, _ENDS))
        for i in range(len(self.strides)):
            x = self._unit(i, name=f"unit_{i}")(x, train=train)
        around: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), around) if self.pool else x
        if self.end == "norm":
            return self.norm(name="norm", dtype=self.dtype)(x, train=train)
        return self._last(name="last")(x, train=train) if self.end == _CONV else x

    @nn.nowrap
    def _unit(self, index: int, **where) -> ConvUnit:
        count, last = len(self.strides), index == len(self.strides) - 1
        sizes, widths = in_stages(self.kernel_sizes, count), tuple(self.hidden)
        widths = widths if self.end == _CONV else (*widths, self.dim)
        if not sizes[index] % 2:
            raise UserError(f"kernel_sizes must be odd, got {self.kernel_sizes}")
        activation = self.unit_activation or self.activation
        return ConvUnit(
            features=in_stages(widths, count)[index],
            norm=self.unit_norm or self.norm,
            activation=activation if self.activate_last or not last else None,
            kernel_size=sizes[index],
            stride=self.strides[index],
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _last(self, **where) -> ConvNorm:
        given = {"activation": self.activation, "dtype": self.dtype}
        size = {"kernel_size": 3, "stride": 2, "padding": 1}
        return ConvNorm(self.dim, self.norm, **given, **size, **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms with the convolutions that they read."""
        units = (self._unit(i, parent=None) for i in range(len(self.strides)))
        found = (sites_of(f"unit_{i}", unit) for i, unit in enumerate(units))
        sites = [site for sites in found for site in sites]
        if self.end == "norm":
            norm, why = self.norm(parent=None), "no Dense or Conv stands next to it"
            sites.append(FoldSite("norm", norm, obstacle=why))
        if self.end == _CONV:
            sites.extend(sites_of("last", self._last(parent=None)))
        return sites


_CONV = "conv_norm"
_ENDS = ("none", "norm", _CONV)
