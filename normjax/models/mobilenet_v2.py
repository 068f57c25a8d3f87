"""MobileNets: depthwise convolutions, in inverted residuals or plain."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import with_defaults
from normjax.models.base import MODELS
from normjax.models.block import sites_of
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory, StochasticDepth
from normjax.models.remat import recomputed

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, width, blocks and stride of the first one, of every stage."""

SEPARABLE_STAGES = (
    (1, 64, 1, 1),
    (1, 128, 2, 2),
    (1, 256, 2, 2),
    (1, 512, 6, 2),
    (1, 1024, 2, 2),
)
"""The same of MobileNetV1."""


def scaled_width(width: int, multiplier: float) -> int:
    """width * multiplier, at the nearest multiple of 8 that is not 10% below it."""
    wanted = width * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class InvertedResidual(nn.Module):
    """[x +] project(depthwise(expand(x))) (Sandler et al., 2018).

    Three ConvUnits, the last without activation; x is added where `residual` says so,
    and nothing acts on the sum. Or, `separable`, two, both with activation
    (MobileNetV1; Howard et al., 2017).

    Attributes:
      norm, activation: factories.  features: of the result.
      hidden: channels between; None for those of x, without `expand`.
      stride: of the depthwise 3x3.
      residual: add x.  drop_path: rate of stochastic depth.
      separable: depthwise and pointwise units, and nothing else.
    """

    norm: Factory
    activation: Factory
    features: int
    hidden: int | None = None
    stride: int = 1
    residual: bool = False
    drop_path: float = 0.0
    separable: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        y = x
        for name in self._names():
            y = self._unit(name, name=name)(y, train=train)
        return (
            x + StochasticDepth(self.drop_path)(y, train=train) if self.residual else y
        )

    @nn.nowrap
    def _names(self) -> tuple[str, ...]:
        if self.separable:
            return "depthwise", "pointwise"
        expand = () if self.hidden is None else ("expand",)
        return (*expand, "depthwise", "project")

    @nn.nowrap
    def _unit(self, kind: str, **where) -> ConvUnit:
        depthwise, last = kind == "depthwise", kind in ("project", "pointwise")
        return ConvUnit(
            features=self.features if last else self.hidden or 0,
            norm=self.norm,
            activation=None if kind == "project" else self.activation,
            kernel_size=3 if depthwise else 1,
            stride=self.stride if depthwise else 1,
            depthwise=depthwise,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm with the convolution that it reads."""
        parts = ((name, self._unit(name, parent=None)) for name in self._names())
        return [site for name, unit in parts for site in sites_of(name, unit)]


@MODELS.register("mobilenet_v2", "grid")
class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018).

    A norm that includes an activation (EvoNorm) gets none behind it.

    Attributes:
      num_classes: width of the logits.
      width_multiplier: factor on all widths, that of the last layer at least 1; the
        results are multiples of 8.
      stages: (expansion, width, blocks, stride of the first block) of each.
      stem_width, last_width: before and behind the stages.
      norm, activation, stem: factories (see `models.build`, which takes keys).
      mixer: factory of what stands in the place of some blocks; None for nothing.
      replaced: (stage, block) of each of those, from 0; they keep their map.
      dropout_rate: before the logits.
      drop_path_rate: stochastic depth of the last block; rates rise linearly from 0.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> stages = ((1, 16, 1, 1), (6, 24, 1, 2))
      >>> model = models.build("mobilenet_v2", num_classes=10, stages=stages)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape, len(model.fold_sites())
      ((2, 10), 7)
    """

    num_classes: int
    width_multiplier: float = 1.0
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    stem_width: int = 32
    last_width: int | None = 1280
    norm: Any = "batch_norm"
    activation: Any = "relu6"
    stem: Any = "conv_unit"
    mixer: Any = None
    replaced: tuple[tuple[int, int], ...] = ()
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Dtype | None = None

    separable: ClassVar[bool] = False

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        self._check_replaced()
        return {"grid"}

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixer gets to see."""
        return ({"grid"},)

    @nn.nowrap
    def _replaced(self) -> set[tuple[int, int]]:
        return {(stage, block) for stage, block in self.replaced}

    @nn.nowrap
    def _check_replaced(self) -> None:
        if bool(self.replaced) != (self.mixer is not None):
            raise UserError(
                "a mixer needs replaced, the blocks in whose place it stands, and "
                "replaced a mixer"
            )
        layers = dict(zip(self._places(), self._layers(), strict=True))
        widths = [scaled_width(self.stem_width, self.width_multiplier)]
        widths += [arguments["features"] for arguments in layers.values()]
        before = dict(zip(layers, widths, strict=False))
        for place in self._replaced():
            if place not in layers:
                raise UserError(f"replaced: there is no block {place}")
            own = layers[place]
            if own["stride"] > 1 or own["features"] != before[place]:
                raise UserError(f"replaced: block {place} changes the map")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32."""
        x = self._stem(name="stem")(images, train=train)
        for i, (place, arguments) in enumerate(self._blocks()):
            if place in self._replaced():
                x = self._gate(name=f"blocks_{i}")(x, train=train)
            else:
                x = self._block(name=f"blocks_{i}", **arguments)(x, train)
        if self.last_width is not None:
            x = self._last(name="last")(x, train=train)
        x = mean_over_positions(x)
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        logits = Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _places(self) -> list[tuple[int, int]]:
        """Stage and place in the stage of every block."""
        counts = enumerate(self.stages)
        return [(s, i) for s, (_, _, blocks, _) in counts for i in range(blocks)]

    @nn.nowrap
    def _blocks(self) -> list[tuple[tuple[int, int], dict[str, Any]]]:
        return list(zip(self._places(), self._layers(), strict=True))

    @nn.nowrap
    def _gate(self, **where) -> nn.Module:
        return with_defaults(self.mixer, norm=self.norm)(dtype=self.dtype, **where)

    @nn.nowrap
    def _layers(self) -> list[dict[str, Any]]:
        """What differs between the blocks."""
        layers, features = [], scaled_width(self.stem_width, self.width_multiplier)
        for expansion, width, blocks, stride in self.stages:
            width = scaled_width(width, self.width_multiplier)
            for i in range(blocks):
                step = 1 if i else stride
                layers.append(
                    {
                        "features": width,
                        "hidden": features * expansion if expansion > 1 else None,
                        "stride": step,
                        "residual": not self.separable
                        and step == 1
                        and features == width,
                        "separable": self.separable,
                    }
                )
                features = width
        last = max(len(layers) - 1, 1)
        rates = (self.drop_path_rate * i / last for i in range(len(layers)))
        return [{**a, "drop_path": r} for a, r in zip(layers, rates, strict=True)]

    @nn.nowrap
    def _parts(self) -> dict[str, Any]:
        parts = {"norm": self.norm, "activation": self.activation}
        return {**parts, "dtype": self.dtype}

    @nn.nowrap
    def _stem(self, **where) -> nn.Module:
        width = scaled_width(self.stem_width, self.width_multiplier)
        return self.stem(dim=width, **self._parts(), **where)

    @nn.nowrap
    def _block(self, **arguments) -> InvertedResidual:
        return recomputed(InvertedResidual, self.remat)(**self._parts(), **arguments)

    @nn.nowrap
    def _last(self, **where) -> ConvUnit:
        width = scaled_width(self.last_width or 0, max(1.0, self.width_multiplier))
        return ConvUnit(width, kernel_size=1, **self._parts(), **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the convolution that it reads."""
        sites = list(sites_of("stem", self._stem(parent=None)))
        for i, (place, arguments) in enumerate(self._blocks()):
            block = self._block(parent=None, **arguments)
            block = self._gate(parent=None) if place in self._replaced() else block
            sites.extend(sites_of(f"blocks_{i}", block))
        if self.last_width is None:
            return sites
        return [*sites, *sites_of("last", self._last(parent=None))]


@MODELS.register("mobilenet_v1", "grid")
class MobileNetV1(MobileNetV2):
    """MobileNetV1 (Howard et al., 2017): separable convolutions one after the other.

    Attributes:
      num_classes: width of the logits.
      width_multiplier: factor on all widths; the results are multiples of 8.
      stages: (1, width, blocks, stride of the first block) of each.
      stem_width, last_width: before and behind the stages; None for nothing there.
      norm, activation, stem: factories (see `models.build`, which takes keys).
      mixer: factory of what stands in the place of some blocks; None for nothing.
      replaced: (stage, block) of each of those, from 0; they keep their map.
      dropout_rate: before the logits.
      drop_path_rate: unused: there are no residual branches.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> stages = ((1, 16, 1, 1), (1, 24, 1, 2))
      >>> model = models.build("mobilenet_v1", num_classes=10, stages=stages)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape, len(model.fold_sites())
      ((2, 10), 5)
    """

    stages: tuple[tuple[int, int, int, int], ...] = SEPARABLE_STAGES
    last_width: int | None = None

    separable: ClassVar[bool] = True
