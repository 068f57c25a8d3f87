"""Residual networks of convolutions, for any norm and activation."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.broadcast import mean_over_positions
from normjax.core.dense import Dense, trunc_normal
from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite, writes_of
from normjax.core.registry import unwrapped, with_defaults
from normjax.models.base import MODELS, in_stages
from normjax.models.block import sites_of
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory, StochasticDepth
from normjax.models.remat import recomputed
from normjax.norms import includes_activation

BLOCKS = {
    "basic": ((3, 1), (3, 1)),
    "bottleneck": ((1, 1), (3, 1), (1, 4)),
    "straight": ((1, 1), (3, 1), (1, 1)),
}
"""Kernel size of every convolution of a branch and its width in that of the stage. The
first 3x3 has the stride ("v1.5")."""

SHORTCUTS = ("project", "pad")


def padded_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Every `stride`-th position, with channels of zeros behind ("option A").

    Args:
      x: [B, H, W, C].

    Returns:
      [B, ceil(H / stride), ceil(W / stride), features].
    """
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))


class AttentionUnit(nn.Module):
    """activation(norm(mixer(x))), in the place of a convolution.

    Attributes:
      mixer, norm, activation: factories.  stride: of the mixer.

    Raises:
      UserError: a stride, and a mixer that has none.
    """

    mixer: Factory
    norm: Factory
    activation: Factory
    stride: int = 1
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, H / stride, W / stride, C]."""
        x = self._mixer(name="mixer")(x, train=train)
        norm = self.norm(name="attended", dtype=self.dtype)
        x = norm(x, train=train)
        return x if includes_activation(norm) else self.activation(name="act")(x)

    @nn.nowrap
    def _mixer(self, **where) -> nn.Module:
        given = {} if self.stride == 1 else {"stride": self.stride}
        mixer = with_defaults(self.mixer, norm=self.norm, dtype=self.dtype, **given)
        if given.keys() - mixer.keywords.keys():
            name = getattr(unwrapped(mixer)[0], "__name__", mixer)
            raise UserError(f"{name} keeps the map, and stands where it gets smaller")
        return mixer(**where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norms; no linear layer writes what the one behind the mixer reads."""
        mixer = self._mixer(parent=None)
        writer = writes_of(mixer)
        path = f"mixer/{writer}" if writer else None
        last = FoldSite("attended", self.norm(parent=None), writer=path)
        return [*sites_of("mixer", mixer), last]


class ResidualBlock(nn.Module):
    """activation(shortcut(x) + branch(x)) (He et al., 2016).

    The branch is a chain of ConvUnits, the last without activation.

    Attributes:
      norm, activation: factories.  width: of the branch.
      block: key of `BLOCKS`.  stride: of the branch's first 3x3.
      shortcut: "identity", "project" (1x1 convolution and norm) or "pad"
        (`padded_shortcut`).
      drop_path: rate of stochastic depth.
      mixer: factory of what stands in the place of the first 3x3; None for that.
    """

    norm: Factory
    activation: Factory
    width: int
    block: str = "basic"
    stride: int = 1
    shortcut: str = "identity"
    drop_path: float = 0.0
    mixer: Factory | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        y = x
        for i in range(len(BLOCKS[self.block])):
            y = self._unit(i, name=f"unit_{i}")(y, train=train)
        y = StochasticDepth(self.drop_path)(y, train=train)
        if self.shortcut == "project":
            x = self._projection(name="shortcut")(x, train=train)
        elif self.shortcut == "pad":
            x = padded_shortcut(x, y.shape[-1], self.stride)
        return self.activation(name="act")(x + y)

    @nn.nowrap
    def _unit(self, index: int, **where) -> nn.Module:
        units = BLOCKS[self.block]
        size, factor = units[index]
        first = [size for size, _ in units].index(3)
        if index == first and self.mixer is not None:
            given = {"stride": self.stride, "dtype": self.dtype, **where}
            return AttentionUnit(self.mixer, self.norm, self.activation, **given)
        return ConvUnit(
            features=factor * self.width,
            norm=self.norm,
            activation=self.activation if index < len(units) - 1 else None,
            kernel_size=size,
            stride=self.stride if index == first else 1,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _projection(self, **where) -> ConvUnit:
        return ConvUnit(
            features=BLOCKS[self.block][-1][1] * self.width,
            norm=self.norm,
            activation=None,
            kernel_size=1,
            stride=self.stride,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm with the convolution that it reads."""
        sites = []
        for i in range(len(BLOCKS[self.block])):
            sites.extend(sites_of(f"unit_{i}", self._unit(i, parent=None)))
        if self.shortcut == "project":
            sites.extend(sites_of("shortcut", self._projection(parent=None)))
        return sites


def check_stages(block: str, depths: Sequence[int], widths: Sequence[int]) -> None:
    """Raise UserError where there are no stages of such blocks."""
    if block not in BLOCKS:
        raise UserError(one_of("block", block, BLOCKS))
    if len(depths) != len(widths):
        raise UserError(f"depths {depths} and widths {widths} are not of one length")


@MODELS.register("resnet", "grid")
class ResNet(nn.Module):
    """Residual network (He et al., 2016), with the stride in the 3x3 ("v1.5").

    A norm that includes an activation (EvoNorm) gets none behind it; that of the sum of
    shortcut and branch stays.

    Attributes:
      num_classes: width of the logits.
      depths, widths: of the stages; all but the first start with stride 2.
      block: "basic", "bottleneck", whose result is four times as wide, or "straight",
        the same without that.
      norm, activation, stem: factories (see `models.build`, which takes keys).
      shortcut: where shapes change, "project" (1x1 convolution and norm) or "pad"
        (zeros; the published networks for CIFAR).
      mixer: factory of the mixers that stand in the place of some 3x3, or one per
        stage, as in HaloNet.
      attention: of each stage the blocks that have them, from 0.
      num_heads: of mixers that do not say theirs, one for all or one per stage.
      drop_path_rate: stochastic depth of the last block; rates rise linearly from 0.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> model = models.build("resnet", num_classes=10, depths=(1, 1), widths=(8, 16))
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape, sorted(variables)
      ((2, 10), ['batch_stats', 'params'])
    """

    num_classes: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "basic"
    norm: Any = "batch_norm"
    activation: Any = "relu"
    stem: Any = "conv_pool"
    shortcut: str = "project"
    mixer: Any = None
    attention: tuple[tuple[int, ...], ...] = ()
    num_heads: int | tuple[int, ...] = 8
    drop_path_rate: float = 0.0
    remat: bool | str = False
    dtype: Dtype | None = None

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        check_stages(self.block, self.depths, self.widths)
        if self.shortcut not in SHORTCUTS:
            raise UserError(one_of("shortcut", self.shortcut, SHORTCUTS))
        if self.attention or self.mixer is not None:
            self._check_attention()
        return {"grid"}

    @nn.nowrap
    def _check_attention(self) -> None:
        if self.mixer is None or len(self.attention) != len(self.depths):
            raise UserError(
                "a mixer needs attention, the blocks of each stage that have it, and "
                f"attention a mixer; {len(self.depths)} stages, not {self.attention}"
            )
        for blocks, depth in zip(self.attention, self.depths, strict=True):
            if any(not 0 <= i < depth for i in blocks):
                raise UserError(f"attention: {blocks} are not blocks 0 to {depth - 1}")

    @nn.nowrap
    def mixer_layouts(self) -> tuple[set[str], ...]:
        """What the mixer of each stage gets to see."""
        return tuple({"grid"} for _ in self.depths)

    @nn.nowrap
    def heads_of(self, stage: int) -> int:
        """Heads of the mixers of a stage."""
        known = {"num_heads": in_stages(self.num_heads, len(self.depths))[stage]}
        mixer = in_stages(self.mixer, len(self.depths))[stage]
        return with_defaults(mixer, **known).keywords["num_heads"]

    @nn.nowrap
    def _mixer(self, stage: int, index: int) -> Factory | None:
        if not self.attention or index not in self.attention[stage]:
            return None
        mixer = in_stages(self.mixer, len(self.depths))[stage]
        heads = in_stages(self.num_heads, len(self.depths))[stage]
        return with_defaults(mixer, num_heads=heads)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: [B, H, W, C], normalised -> logits [B, num_classes], float32."""
        x = self._stem(name="stem")(images, train=train)
        for name, stage, i in self._layers():
            x = self._block(stage, i, name=name)(x, train)
        x = mean_over_positions(x)
        init = {"kernel_init": trunc_normal, "dtype": self.dtype}
        logits = Dense(self.num_classes, name="head", **init)(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _layers(self) -> list[tuple[str, int, int]]:
        """Name, stage and place in the stage of every block."""
        depths = enumerate(self.depths)
        return [(f"blocks_{s}_{i}", s, i) for s, n in depths for i in range(n)]

    @nn.nowrap
    def _stem(self, **where) -> nn.Module:
        return self.stem(
            dim=self.widths[0],
            norm=self.norm,
            activation=self.activation,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def _block(self, stage: int, index: int, **where) -> ResidualBlock:
        before = sum(self.depths[:stage]) + index
        same = index > 0 or (stage == 0 and BLOCKS[self.block][-1][1] == 1)
        return recomputed(ResidualBlock, self.remat)(
            norm=self.norm,
            activation=self.activation,
            width=self.widths[stage],
            block=self.block,
            stride=2 if stage and not index else 1,
            shortcut="identity" if same else self.shortcut,
            drop_path=self.drop_path_rate * before / max(sum(self.depths) - 1, 1),
            mixer=self._mixer(stage, index),
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the model with the convolution that it reads."""
        sites = list(sites_of("stem", self._stem(parent=None)))
        for name, stage, i in self._layers():
            sites.extend(sites_of(name, self._block(stage, i, parent=None)))
        return sites
