"""What stands around forward cross attention in a block of FcaFormer."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.folding import FoldSite
from normjax.mixers.grid.forward_cross import CROSS_TOKENS
from normjax.models.block import Branch, positioning
from normjax.models.conv_unit import ConvUnit, DepthwiseConv
from normjax.models.layers import Factory
from normjax.models.mlps import MLP


class CrossTokenConv(nn.Module):
    """norm(dwconv3x3(x)), and tokens of x for the blocks to come (Zhang et al., 2023).

    The tokens are a depthwise 7 x 7 convolution at every fourth position; they are the
    last of the "cross_tokens" in the carry of the stage.

    Attributes:
      norm: factory.
      makes_tokens: the last block of a stage makes none.
      dtype: of the computation; parameters are float32.
    """

    norm: Factory
    makes_tokens: bool = True
    dtype: Dtype | None = None

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None

    @nn.compact
    def __call__(self, x: jax.Array, *, carry: Any = None, train: bool = False) -> Any:
        """x: [B, H, W, C] -> same; (same, carry) where there is a carry."""
        y = self._unit(name="local")(x, train=train)
        if carry is None:
            return y
        if self.makes_tokens:
            tokens = DepthwiseConv(7, 4, dtype=self.dtype, name="tokens")(x)
            tokens = tokens.reshape(x.shape[0], -1, x.shape[-1])
            carry = {**carry, CROSS_TOKENS: (*carry.get(CROSS_TOKENS, ()), tokens)}
        return y, carry

    @nn.nowrap
    def _unit(self, **where: Any) -> ConvUnit:
        # A depthwise one keeps the channels, whatever `features` says.
        return ConvUnit(0, self.norm, None, depthwise=True, dtype=self.dtype, **where)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the convolution that it reads."""
        norm = self.norm(parent=None)
        return [FoldSite("local/norm", norm, writer="local/conv")]


def crossing(norm: Factory, **arguments: Any) -> Branch:
    """The branch `cross` of a `CrossTokenConv`, which replaces the stream."""
    layer = functools.partial(CrossTokenConv, norm=norm, **arguments)
    branch = positioning("cross", layer)
    return branch._replace(takes=(("train", "train"),), carries=True, replaces=True)


class NormedMLP(nn.Module):
    """MLP(norm(x)): a norm of its own behind that of the branch.

    Attributes:
      norm: factory.  hidden, activation: of the MLP.
      dtype: of the computation; parameters are float32.
    """

    norm: Factory
    hidden: int
    activation: Factory
    dtype: Dtype | None = None

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = "mlp/fc2"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: [..., C] -> same."""
        x = self.norm(name="norm", dtype=self.dtype)(x, train=train)
        return MLP(self.hidden, self.activation, self.dtype, name="mlp")(x)

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm with the layer that reads it."""
        norm = self.norm(parent=None)
        return [FoldSite("norm", norm, readers=("mlp/fc1",))]
