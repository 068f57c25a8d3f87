"""The merge of separable convolutions."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.folding import FoldSite
from normjax.core.registry import NORMS, Part
from normjax.models.block import sites_of
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory
from normjax.models.stems import STEMS

UNIT_NORM = Part(NORMS, needs=frozenset({"grid"}))
"""Of the norms of convolutional units."""


@STEMS.register("separable_conv", "grid")
class SeparableMerge(nn.Module):
    """A depthwise convolution of stride 2 between two 1 x 1 (SG-Former, FcaFormer).

        norm(W2 activation(norm(dwconv3x3(activation(norm(W1 x))))))

    Attributes:
      dim: width of the result.
      norm, activation: factories.
      unit_norm: factory of the norms; None for `norm`.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> gelu, batch_norm = activations.build("gelu"), norms.build("batch_norm")
      >>> merge = models.SeparableMerge(dim=16, norm=batch_norm, activation=gelu)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 5, 8))  # [B, H, W, C]
      >>> y, variables = merge.init_with_output(jax.random.key(1), x, train=False)
      >>> y.shape, sorted(variables["params"])
      ((1, 2, 3, 16), ['depthwise', 'expand', 'project'])
    """

    dim: int
    norm: Factory
    activation: Factory
    unit_norm: Factory | None = None
    dtype: Dtype | None = None

    parts: ClassVar[Mapping[str, Part]] = {"unit_norm": UNIT_NORM}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), dim]."""
        for name, unit in self._units().items():
            x = unit(name=name)(x, train=train)
        return x

    @nn.nowrap
    def _units(self) -> dict[str, Factory]:
        own = {"norm": self.unit_norm or self.norm, "dtype": self.dtype}
        unit = functools.partial(ConvUnit, self.dim, **own)
        act = {"activation": self.activation}
        return {
            "expand": functools.partial(unit, kernel_size=1, **act),
            "depthwise": functools.partial(unit, stride=2, depthwise=True, **act),
            "project": functools.partial(unit, kernel_size=1, activation=None),
        }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms with the convolutions that they read."""
        units = self._units().items()
        return [s for name, unit in units for s in sites_of(name, unit(parent=None))]
