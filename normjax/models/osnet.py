"""OSNet: residual blocks of streams that see at several scales."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.models.base import MODELS
from normjax.models.block import sites_of
from normjax.models.conv_unit import ConvUnit, DepthwiseConv, he_fan_out
from normjax.models.layers import Factory
from normjax.models.remat import recomputed
from normjax.norms import InstanceNorm, includes_activation

STREAMS = 4
INSTANCE_NORMS = ("none", "inside", "behind")


class LightConv(nn.Module):
    """activation(norm(dwconv3x3(W x))): the pointwise layer comes first.

    Attributes:
      features: channels of the result.  norm, activation: factories.
    """

    features: int
    norm: Factory
    activation: Factory
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H, W, features]."""
        plain: Any = {"use_bias": False, "dtype": self.dtype}
        x = Dense(self.features, kernel_init=he_fan_out, name="pointwise", **plain)(x)
        x = DepthwiseConv(dtype=self.dtype, name="conv")(x)
        norm = self.norm(name="norm", dtype=self.dtype)
        x = norm(x, train=train)
        return x if includes_activation(norm) else self.activation(name="act")(x)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        return [FoldSite("norm", self.norm(parent=None), writer="conv")]


class ChannelGate(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), one factor a channel.

    Attributes:
      reduction: of the channels between; at least one is left.
    """

    reduction: int = 16
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        channels, dense = x.shape[-1], {"kernel_init": he_fan_out, "dtype": self.dtype}
        hidden = max(channels // self.reduction, 1)
        means = mean_over_positions(x)
        gate = jax.nn.relu(Dense(hidden, name="fc1", **dense)(means))
        gate = jax.nn.sigmoid(Dense(channels, name="fc2", **dense)(gate))
        return x * gate[:, None, None]


class OmniScaleBlock(nn.Module):
    """activation(shortcut(x) + norm(W sum_t gate(stream_t(norm(W' x))))) (OSNet).

    Stream t is t `LightConv`s, t = 1..4; all have one gate.

    Attributes:
      features: of the result; a fourth of them inside.
      norm, activation: factories.
      instance_norm: "inside": an instance norm takes the place of the last norm of the
        branch (OSNet-AIN); "behind": one acts on the sum (OSNet-IBN); "none".
      project: whether the shortcut changes the width.
    """

    features: int
    norm: Factory
    activation: Factory
    instance_norm: str = "none"
    project: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H, W, features]."""
        units = {name: unit(name=name) for name, unit in self._units().items()}
        h, total = units["reduce"](x, train=train), 0.0
        gate = ChannelGate(dtype=self.dtype, name="gate")
        for t in range(STREAMS):
            y = h
            for i in range(t + 1):
                y = self._light(name=f"stream_{t}_{i}")(y, train=train)
            total = total + gate(y)
        y = units["expand"](total, train=train)
        x = units["shortcut"](x, train=train) if self.project else x
        x = x + y
        if self.instance_norm == "behind":
            x = InstanceNorm(dtype=self.dtype, name="instance_norm")(x)
        return self.activation(name="act")(x)

    @nn.nowrap
    def _light(self, **where) -> LightConv:
        return LightConv(
            self.features // 4, self.norm, self.activation, self.dtype, **where
        )

    @nn.nowrap
    def _units(self) -> dict[str, Factory]:
        def unit(features: int, norm: Factory, activation: Factory | None) -> Factory:
            def made(**where):
                one = {"kernel_size": 1, "dtype": self.dtype}
                return ConvUnit(features, norm, activation, **one, **where)

            return made

        last = InstanceNorm if self.instance_norm == "inside" else self.norm
        units = {
            "reduce": unit(self.features // 4, self.norm, self.activation),
            "expand": unit(self.features, last, None),
        }
        if self.project:
            units["shortcut"] = unit(self.features, self.norm, None)
        return units

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms with the layers that they read."""
        sites = []
        for name, unit in self._units().items():
            sites.extend(sites_of(name, unit(parent=None)))
        for t in range(STREAMS):
            for i in range(t + 1):
                sites.extend(sites_of(f"stream_{t}_{i}", self._light(parent=None)))
        if self.instance_norm == "behind":
            sites.append(FoldSite("instance_norm", InstanceNorm(parent=None)))
        return sites


@MODELS.register("osnet", "grid")
class OSNet(nn.Module):
    """Omni-scale network (Zhou et al., 2019), for finding persons again.

    A stem, three stages of two blocks, the first two of which end in a 1x1 unit and
    means of 2x2 positions, a 1x1 unit, and features relu(norm(W mean + b)) before the
    logits.

    Attributes:
      num_classes: width of the logits.
      widths: of the stem and of the stages; multiples of 64 let gates be as published.
      blocks: where the instance norm of every block is, by stage; see `OmniScaleBlock`.
      feature_dim: width of the features.
      norm, activation, stem: factories (see `models.build`, which takes keys).
      embed_norm: factory of the norm in the stem; None for `norm`.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> from normjax import models
      >>> model = models.build("osnet", num_classes=10, widths=(8, 16, 16, 16))
      >>> isinstance(model, models.OSNet)
      True
      >>> images = jax.numpy.zeros((2, 64, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 10)
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 256, 384, 512)
    blocks: tuple[tuple[str, ...], ...] = (("none",) * 2,) * 3
    feature_dim: int = 512
    norm: Any = "batch_norm"
    activation: Any = "relu"
    stem: Any = "conv_pool"
    embed_norm: Any = None
    remat: bool | str = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        if len(self.widths) != len(self.blocks) + 1:
            raise UserError(
                f"widths {self.widths} are not those of a stem and {len(self.blocks)} "
                "stages (blocks)"
            )
        for kind in (kind for stage in self.blocks for kind in stage):
            if kind not in INSTANCE_NORMS:
                raise UserError(one_of("kind of block", kind, INSTANCE_NORMS))
        return {"grid"}

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, *, features: bool = False
    ) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32.

        Args:
          features: give what the logits are made of, [B, feature_dim], by which
            images of persons are compared.
        """
        x = self._features(images, train)
        if features:
            return x
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        logits = Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _features(self, images: jax.Array, train: bool) -> jax.Array:
        x = self._stem(name="stem")(images, train=train)
        for name, module in self._parts().items():
            if name.startswith("blocks"):
                x = module(name=name)(x, train)
                continue
            x = module(name=name)(x, train=train)
            if name.startswith("transition"):
                x = nn.avg_pool(x, (2, 2), (2, 2))
        init = {"kernel_init": nn.initializers.normal(0.01), "dtype": self.dtype}
        x = Dense(self.feature_dim, name="fc", **init)(mean_over_positions(x))
        norm = self.norm(name="norm", dtype=self.dtype)
        x = norm(x[:, None, None], train=train)
        x = x if includes_activation(norm) else self.activation(name="act")(x)
        return x[:, 0, 0]

    @nn.nowrap
    def _stem(self, **where) -> nn.Module:
        return self.stem(
            dim=self.widths[0],
            norm=self.norm if self.embed_norm is None else self.embed_norm,
            activation=self.activation,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _parts(self) -> dict[str, Factory]:
        """Blocks, and the units between and behind them, in order."""
        parts: dict[str, Factory] = {}
        width, last = self.widths[0], len(self.blocks) - 1
        for stage, kinds in enumerate(self.blocks):
            for i, kind in enumerate(kinds):
                features = self.widths[stage + 1]
                parts[f"blocks_{stage}_{i}"] = self._block(features, kind, width)
                width = features
            name = "last" if stage == last else f"transition_{stage}"
            parts[name] = self._unit(width)
        return parts

    @nn.nowrap
    def _block(self, features: int, kind: str, width: int) -> Factory:
        block = recomputed(OmniScaleBlock, self.remat)

        def made(**where):
            return block(
                features,
                self.norm,
                self.activation,
                instance_norm=kind,
                project=features != width,
                dtype=self.dtype,
                **where,
            )

        return made

    @nn.nowrap
    def _unit(self, features: int) -> Factory:
        def made(**where):
            one = {"kernel_size": 1, "dtype": self.dtype}
            return ConvUnit(features, self.norm, self.activation, **one, **where)

        return made

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the layer that it reads."""
        sites = list(sites_of("stem", self._stem(parent=None)))
        for name, part in self._parts().items():
            sites.extend(sites_of(name, part(parent=None)))
        return [*sites, FoldSite("norm", self.norm(parent=None), writer="fc")]
