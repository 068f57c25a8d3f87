"""Residual networks of convolutions without norms."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import NORMS
from normjax.models.base import MODELS
from normjax.models.layers import Factory, StochasticDepth
from normjax.models.remat import recomputed
from normjax.models.resnet import BLOCKS, check_stages

fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def check_no_norm(norm: Any) -> None:
    """Raises UserError where a network without norms is given one."""
    entry = NORMS.entry_of(norm)
    if entry is None or entry.name != "none":
        name = "of another kind" if entry is None else repr(entry.name)
        raise UserError(f"a network without norms has no place for norm {name}")


class NormFreeBlock(nn.Module):
    """shortcut + alpha gain branch(beta activation(x)) (Brock et al., 2021).

    The branch is a chain of convolutions with biases, activations between them. A
    shortcut that changes the shape is a 1x1 convolution of beta activation(x), any
    other is x.

    Attributes:
      activation: factory; it keeps the variance (`scaled_relu`).
      width: of the branch.  block: key of `resnet.BLOCKS`.
      stride: of the branch's first 3x3.  project: whether the shape changes.
      alpha: size of the branch.  beta: 1 / expected standard deviation of x.
      drop_path: rate of stochastic depth.
    """

    activation: Factory
    width: int
    block: str = "basic"
    stride: int = 1
    project: bool = False
    alpha: float = 0.2
    beta: float = 1.0
    drop_path: float = 0.0
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features].

        Learns, besides the convolutions, `gain` [], which starts at 0: at the start
        the block is its shortcut (SkipInit; De & Smith, 2020).
        """
        units = BLOCKS[self.block]
        first = [size for size, _ in units].index(3)
        y = entry = self.activation(name="act")(x) * self.beta
        for i, (size, factor) in enumerate(units):
            y = self.activation(name=f"act_{i}")(y) if i else y
            stride = self.stride if i == first else 1
            y = self._conv(factor * self.width, size, stride, f"conv_{i}")(y)
        gain = self.param("gain", nn.initializers.zeros, ())
        y = StochasticDepth(self.drop_path)(y, train=train)
        if self.project:
            x = self._conv(y.shape[-1], 1, self.stride, "shortcut")(entry)
        return x + (self.alpha * gain).astype(y.dtype) * y

    def _conv(self, features: int, size: int, stride: int, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (size, size),
            strides=(stride, stride),
            padding=size // 2,
            kernel_init=fan_in_normal,
            dtype=self.dtype,
            name=name,
        )


@MODELS.register("norm_free_resnet", "grid")
class NormFreeResNet(nn.Module):
    """Residual network without norms (NF-ResNet; Brock, De, Smith & Simonyan, 2021).

    Its parts, none of which is a norm: branches of size `alpha` beside a stream whose
    standard deviation is known (1 behind the first block of a stage, then
    sqrt(std^2 + alpha^2) after each block), activations that keep the variance, and
    weights standardized by the config: `config.reparam = ({"pattern": "conv|shortcut",
    "name": "scaled_weight_standardization"},)`. It is trained with adaptive gradient
    clipping (`config.optim.adaptive_clip`).

    Attributes:
      num_classes: width of the logits.
      depths, widths: of the stages; all but the first start with stride 2.
      block: "basic" or "bottleneck", whose result is four times as wide.
      activation: factory (see `models.build`, which takes keys).
      norm: none; there for the sake of configs.
      stem_stride: of the 3x3 convolution before the stages.
      alpha: size of a branch beside a stream of size 1.
      drop_path_rate: stochastic depth of the last block; rates rise linearly from 0.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"depths": (1, 1), "widths": (8, 16)}
      >>> model = models.build("norm_free_resnet", num_classes=10, **size)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape, sorted(variables)
      ((2, 10), ['params'])
    """

    num_classes: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "basic"
    activation: Any = "scaled_relu"
    norm: Any = "none"
    stem_stride: int = 1
    alpha: float = 0.2
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What norms would get to see."""
        check_no_norm(self.norm)
        check_stages(self.block, self.depths, self.widths)
        return {"grid"}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32."""
        x = nn.Conv(
            self.widths[0],
            (3, 3),
            strides=(self.stem_stride, self.stem_stride),
            padding=1,
            kernel_init=fan_in_normal,
            dtype=self.dtype,
            name="stem_conv",
        )(images)
        kind = recomputed(NormFreeBlock, self.remat)
        for name, arguments in self.blocks().items():
            x = kind(name=name, **arguments)(x, train)
        x = mean_over_positions(self.activation(name="act")(x))
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        logits = Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def blocks(self) -> dict[str, dict[str, Any]]:
        """Arguments of every block, by its name."""
        blocks, variance = {}, 1.0
        last = max(sum(self.depths) - 1, 1)
        for stage, (depth, width) in enumerate(
            zip(self.depths, self.widths, strict=True)
        ):
            for i in range(depth):
                blocks[f"blocks_{stage}_{i}"] = {
                    "activation": self.activation,
                    "width": width,
                    "block": self.block,
                    "stride": 2 if stage and not i else 1,
                    "project": not i,
                    "alpha": self.alpha,
                    "beta": 1 / math.sqrt(variance),
                    "drop_path": self.drop_path_rate * len(blocks) / last,
                    "dtype": self.dtype,
                }
                variance = (variance if i else 1.0) + self.alpha**2
        return blocks

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """There are no norms; folding merges standardized weights."""
        return []
