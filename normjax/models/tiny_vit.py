"""TinyViT: a pyramid that begins with convolutions and has one in every layer."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, reads_of, writes_of
from normjax.core.ranges import ABOVE_ZERO, Range
from normjax.mixers.ops.partition import padded, pair
from normjax.models.base import MODELS
from normjax.models.block import Block, Branch, feeding, positioning, sites_of
from normjax.models.conv_unit import ConvUnit
from normjax.models.layers import Factory
from normjax.models.mobilenet_v2 import InvertedResidual
from normjax.models.placement import BranchPlacement
from normjax.models.pyramid import Pyramid
from normjax.models.remat import recomputed
from normjax.models.stems import STEMS

_TRAIN = (("train", "train"),)


@STEMS.register("inverted_residual", "grid")
class InvertedMerge(nn.Module):
    """Convolutions 1x1, 3x3 per channel with the stride, 1x1, each with a norm.

    Activations stand behind the first two (TinyViT; Wu et al., 2022).

    Attributes:
      dim: width of the result, and between.
      norm, activation: factories.
      stride: of the second convolution.
      dtype: of the computation.

    Example:
      >>> import jax
      >>> from normjax import activations, models, norms
      >>> gelu, batch_norm = activations.build("gelu"), norms.build("batch_norm")
      >>> merge = models.InvertedMerge(dim=16, norm=batch_norm, activation=gelu)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = merge.init_with_output(jax.random.key(1), x, train=False)
      >>> y.shape, sorted(variables["params"]["unit"])
      ((1, 2, 2, 16), ['depthwise', 'expand', 'project'])
    """

    dim: int
    norm: Factory
    activation: Factory
    stride: int = 2
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), dim]."""
        return self._unit(name="unit")(x, train)

    @nn.nowrap
    def _unit(self, **where: Any) -> InvertedResidual:
        return InvertedResidual(
            norm=self.norm,
            activation=self.activation,
            features=self.dim,
            hidden=self.dim,
            stride=self.stride,
            dtype=self.dtype,
            **where,
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm with the convolution that it reads."""
        return list(sites_of("unit", self._unit(parent=None)))


class PaddedWindows(nn.Module):
    """windows(norm(x)), x with zeros on the right and below where none else would be.

    The zeros stand before the norm, so that all windows are read behind it.

    Attributes:
      norm: factory.
      mixer: factory of a mixer with `window_size`.
      dtype: of the computation; parameters are float32.
    """

    norm: Factory
    mixer: Factory
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        height, width = x.shape[1:3]
        mixer = self.mixer(name="window")
        x = padded(x, pair(getattr(mixer, "window_size", 1)))
        x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        return mixer(x, train=train)[:, :height, :width]

    @property
    def writes(self) -> str | None:
        """The layer that makes what it gives."""
        inside = writes_of(self.mixer(parent=None))
        return f"window/{inside}" if inside else None

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with what reads it."""
        readers = tuple(f"window/{r}" for r in reads_of(self.mixer(parent=None)))
        return [FoldSite("norm", self.norm(parent=None), readers)]


@MODELS.register("tiny_vit", "grid")
class TinyViT(Pyramid):
    """TinyViT (Wu et al., 2022): a pyramid with more convolutions.

    The layers of the first stage are activation(x + conv1x1(dwconv3x3(conv1x1(x)))) of
    units of convolution and norm; those of the others

        x <- x + windows(norm(x))    x <- norm(dwconv3x3(x))    x <- x + mlp(norm(x))

    where zeros on the right and below, before the norm, make maps of windows. Norms of
    convolutions are `embed_norm`.

    Attributes:
      expansion: width inside the layers of the first stage, in multiples of theirs.
      num_classes: width of the logits.
      depths, dims, num_heads: of the stages; the first has no heads.
      mlp_ratio, norm, activation, mlp, mixer: of all stages, as of `Pyramid`.
      stem, merge, embed_norm, final_norm, pool: as of `Pyramid`.
      stage_norm, pos_embed, mlp_norm, last_width, distilled: as of `Pyramid`.
      branches, pooled_block: as they are.
      layer_scale, position_conv, placement, pad: as they are.
      drop_path_rate: stochastic depth of the last layer; rates rise linearly from 0.
      remat: compute each block again in the backward pass instead of storing it; True,
        or what is stored all the same: a key of `models.REMAT_POLICIES`.
      dtype: of the computation; parameters are float32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import models
      >>> size = {"depths": (1, 1), "dims": (8, 16), "num_heads": (1, 2)}
      >>> mixer = {"name": "window", "window_size": 2, "shift": 0}
      >>> model = models.build("tiny_vit", num_classes=10, mixer=mixer, **size)
      >>> images = jnp.zeros((2, 24, 24, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 10)
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    expansion: float = 4.0

    ranges: ClassVar[Mapping[str, Range]] = {"expansion": ABOVE_ZERO}
    embed_norm: Any = "batch_norm"
    stem: Any = "conv_stack"
    merge: Any = "inverted_residual"
    pool: str = "mean_first"

    @nn.nowrap
    def layouts(self) -> set[str]:
        """What the norms get to see."""
        fixed = {"layer_scale": None, "position_conv": (), "pad": False}
        for name, only in {**fixed, "placement": "pre"}.items():
            if getattr(self, name) != only:
                raise UserError(f"model 'tiny_vit' has {name} {only!r} only")
        return super().layouts()

    @nn.nowrap
    def _block(self, stage: int, index: int, **where: Any) -> Block:
        layer, layers = sum(self.depths[:stage]) + index, sum(self.depths)
        rate = self.drop_path_rate * layer / max(layers - 1, 1)
        branches = self._attending(stage, index) if stage else self._convolving(stage)
        # What replaces the stream is not dropped.
        rates = [{} if b.replaces else {"drop_path": rate} for b in branches]
        pairs = zip(branches, rates, strict=True)
        return recomputed(Block, self.remat)(
            tuple(b._replace(**r) for b, r in pairs), **where
        )

    @nn.nowrap
    def _convolving(self, stage: int) -> tuple[Branch, ...]:
        conv = functools.partial(
            InvertedResidual,
            norm=self._embed_norm(),
            activation=self.activation,
            features=self.dims[stage],
            hidden=round(self.expansion * self.dims[stage]),
            dtype=self.dtype,
        )
        return (
            positioning("conv", conv)._replace(takes=_TRAIN),
            positioning("act", self.activation)._replace(replaces=True),
        )

    @nn.nowrap
    def _attending(self, stage: int, index: int) -> tuple[Branch, ...]:
        norm = functools.partial(self.norm, dtype=self.dtype)
        windows = functools.partial(
            PaddedWindows, norm, self._mixer(stage, index), dtype=self.dtype
        )
        # A depthwise one keeps the channels, whatever `features` says.
        conv = functools.partial(
            ConvUnit, 0, self._embed_norm(), None, depthwise=True, dtype=self.dtype
        )
        return (
            positioning("mixer", windows)._replace(takes=_TRAIN),
            positioning("local", conv)._replace(takes=_TRAIN, replaces=True),
            feeding(norm, self._mlp(stage, index), BranchPlacement(pre=True)),
        )
