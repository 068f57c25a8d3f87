"""What a layer of a stage is made of, beside its mixer and its MLP: rows by key."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.errors import UserError, one_of
from normjax.core.folding import FoldSite
from normjax.core.registry import NORMS, Part, Registry
from normjax.mixers.steps import depthwise_layer
from normjax.models.block import Branch, feeding, mixing, positioning
from normjax.models.forward_cross import NormedMLP, crossing
from normjax.models.layers import Factory, PositionConv
from normjax.models.mlps import MLP
from normjax.models.placement import BranchPlacement

BLOCKS = Registry("block")
"""The layers of stages by key, `branches=` of a pyramid: which branches they have.

A row has `name` and `make`, the class; `make(...).branches(given)` are the branches.

Example:
  >>> from normjax.models import BLOCKS
  >>> BLOCKS["transformer"].make.__name__
  'TransformerBlock'
"""

_NORMS = {
    "pre": BranchPlacement(pre=True),
    "output": BranchPlacement(output=True),
    "post": BranchPlacement(post=True),
    "none": BranchPlacement(),
}


class Layer(NamedTuple):
    """What a model gives the blocks of a layer.

    Attributes:
      norm, mlp_norm, embed_norm, mixer, mlp, activation: factories, complete but for
        `name`; the MLP may be None.
      placement, mlp_placement: where the norms of mixer and MLP sit.
      hidden: width inside the MLP.
      layer_scale: first value of a factor per channel on branches, or None.
      position_conv: names of the branches with a convolution before them.
      drop_path: rate of stochastic depth.  last_drop_path: that of the last layer.
      index, count: of the layer in its stage, and layers there.
      dtype: of the computation.
    """

    norm: Factory
    mlp_norm: Factory
    embed_norm: Factory
    mixer: Factory
    mlp: Factory | None
    activation: Factory
    placement: BranchPlacement
    mlp_placement: BranchPlacement
    hidden: int
    layer_scale: float | None = None
    position_conv: tuple[str, ...] = ()
    drop_path: float = 0.0
    last_drop_path: float = 0.0
    index: int = 0
    count: int = 1
    dtype: Dtype | None = None

    def scaled(self) -> dict[str, Any]:
        """What all branches have."""
        return {"layer_scale": self.layer_scale, "drop_path": self.drop_path}


@BLOCKS.register("transformer", "seq", "grid")
@dataclasses.dataclass(frozen=True)
class TransformerBlock:
    """x + mixer(norm(x)), then x + mlp(norm(x)) (Vaswani et al., 2017).

    Attributes:
      mixer_norm: where the norm of the mixer sits: "pre", "output", "post", or "none"
        for a mixer that has one of its own; None for the placement of the model.

    Example:
      >>> from normjax.models.blocks import TransformerBlock
      >>> TransformerBlock(mixer_norm="none").mixer_norm
      'none'
    """

    mixer_norm: str | None = None

    def branches(self, given: Layer) -> tuple[Branch, ...]:
        """Those of one layer."""
        place = given.placement
        if self.mixer_norm is not None:
            if self.mixer_norm not in _NORMS:
                raise UserError(one_of("mixer_norm", self.mixer_norm, _NORMS))
            place = _NORMS[self.mixer_norm]
        parts = [mixing(given.norm, given.mixer, place, **given.scaled())]
        if given.mlp is not None:
            more = given.scaled()
            place = given.mlp_placement
            parts.append(feeding(given.mlp_norm, given.mlp, place, **more))
        conv, branches = functools.partial(PositionConv, dtype=given.dtype), []
        for branch in parts:
            if branch.name in given.position_conv:
                branches.append(positioning(f"position_{branch.name}", conv))
            branches.append(branch)
        return tuple(branches)


class NormedConvMLP(nn.Module):
    """y = W2 act(W1 norm(dwconv(x))): what ConvNeXt has in a branch.

    Attributes:
      hidden, activation: of the MLP.  norm: factory.
      kernel_size: of the depthwise convolution, odd.
      dtype: of the computation.  param_dtype: of the convolution's parameters.
    """

    hidden: int
    activation: Factory
    norm: Factory
    kernel_size: int = 7
    dtype: Dtype | None = None
    param_dtype: Dtype = jax.numpy.float32

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "mlp/fc2"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: [B, H, W, C] -> same."""
        size = self.kernel_size
        x = depthwise_layer(self, "dwc", x, (size, size, x.shape[-1]))
        x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        return MLP(self.hidden, self.activation, self.dtype, name="mlp")(x)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the layer that reads it."""
        return [FoldSite("norm", self.norm(parent=None), readers=("mlp/fc1",))]


_NORM_OF_MAPS = Part(NORMS, needs=frozenset({"grid"}))


@BLOCKS.register("convnext", "grid")
@dataclasses.dataclass(frozen=True)
class ConvNeXtBlock:
    """x + W2 act(W1 norm(dwconv(x))) (ConvNeXt; Liu et al., 2022).

    Attributes:
      kernel_size: of the depthwise convolution.
      norm: factory of the norm; None for that of the model.

    Example:
      >>> from normjax.models.blocks import ConvNeXtBlock
      >>> ConvNeXtBlock().kernel_size
      7
    """

    kernel_size: int = 7
    norm: Factory | None = None

    parts: ClassVar[Mapping[str, Part]] = {"norm": _NORM_OF_MAPS}

    def branches(self, given: Layer) -> tuple[Branch, ...]:
        """The one of a layer."""
        layer = functools.partial(
            NormedConvMLP,
            hidden=given.hidden,
            activation=given.activation,
            norm=self.norm or given.norm,
            kernel_size=self.kernel_size,
            dtype=given.dtype,
        )
        branch = positioning("local", layer)
        return (branch._replace(takes=(("train", "train"),), **given.scaled()),)


@BLOCKS.register("forward_cross", "grid")
@dataclasses.dataclass(frozen=True)
class ForwardCrossBlock:
    """A layer of FcaFormer (Zhang et al., 2023).

        x + mixer(norm(x)),   x = norm(dwconv(x)),   x + mlp(norm(norm(x)))

    The convolution makes tokens for the layers to come as well, but in the last layer
    of a stage. Its norm is the `embed_norm` of the model.

    Example:
      >>> from normjax.models.blocks import ForwardCrossBlock
      >>> ForwardCrossBlock()
      ForwardCrossBlock()
    """

    def branches(self, given: Layer) -> tuple[Branch, ...]:
        """Those of one layer."""
        makes = given.index < given.count - 1
        mlp = functools.partial(
            NormedMLP,
            norm=given.norm,
            hidden=given.hidden,
            activation=given.activation,
            dtype=given.dtype,
        )
        more: Any = {"takes": (("train", "train"),), **given.scaled()}
        return (
            mixing(given.norm, given.mixer, given.placement, **given.scaled()),
            crossing(given.embed_norm, makes_tokens=makes, dtype=given.dtype),
            feeding(given.mlp_norm, mlp, given.mlp_placement, **more),
        )


@BLOCKS.register("replacing", "seq", "grid")
@dataclasses.dataclass(frozen=True)
class ReplacingBlock:
    """x = mixer(x), without a residual, then norm(x + mlp(x)) (M2-BERT).

    (Fu et al., 2023.)

    Attributes:
      mixer_norm: mixer(norm(x)) instead.
      norm: factory of that norm; None for that of the model.

    Example:
      >>> from normjax.models.blocks import ReplacingBlock
      >>> ReplacingBlock().mixer_norm
      False
    """

    mixer_norm: bool = False
    norm: Factory | None = None

    parts: ClassVar[Mapping[str, Part]] = {"norm": Part(NORMS)}

    def branches(self, given: Layer) -> tuple[Branch, ...]:
        """Those of one layer."""
        before, behind = (
            BranchPlacement(pre=self.mixer_norm),
            BranchPlacement(post=True),
        )
        mixed = mixing(self.norm or given.norm, given.mixer, before)._replace(
            replaces=True
        )
        return mixed, feeding(given.mlp_norm, given.mlp, behind, **given.scaled())
