"""The layer of transformers: a token mixer and an MLP, each a residual branch."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.folding import FoldSite, Stream, reads_of, writes_of
from normjax.mixers.sequence import only_tokens
from normjax.models.layers import MLP, Factory, StochasticDepth
from normjax.models.placement import Spots, residual

_STREAM = "its output is the residual stream"


def _made(part: Any, **arguments: Any) -> Any:
    """What a factory makes, or the module that several blocks share."""
    return part if isinstance(part, nn.Module) else part(**arguments)


class Part(NamedTuple):
    """One branch of a block, as folding sees it.

    Attributes:
      norm, path: names of its norm and its layer.  layer: unbound.
      reads: paths inside the layer of all that reads the norm's output.
    """

    norm: str
    path: str
    layer: Any
    reads: tuple[str, ...]


class Block(nn.Module):
    """One transformer layer: a token mixer and an MLP, each a residual branch.

    Attributes:
      norm, mixer, activation: factories; the mixer's needs no further arguments.
        Blocks may share one mixer: a module in place of its factory.
      mlp_hidden: width inside the MLP.  drop_path: rate of stochastic depth.
      spots: where the norms of both branches sit.
      mlp: factory of the MLP, or the module that blocks share.
      mask_norms: norms get the mask as well, so that padding does not count in them,
        and read 0 there, for the backward pass of some averages over all positions.
    """

    norm: Factory
    mixer: Any
    activation: Factory
    mlp_hidden: int
    drop_path: float
    spots: Spots
    mlp: Any = MLP
    mask_norms: bool = True
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        decode: bool = False,
    ) -> jax.Array:
        """x: [B, L, C] or [B, H, W, C] -> same.

        Args:
          train: whether the model trains.
          mask, positions, decode: as of the mixers; given to those parts that they
            concern.
        """
        known = {} if mask is None else {"mask": mask}
        known = known if positions is None else {**known, "positions": positions}
        known = {**known, "decode": True} if decode else known
        mix = functools.partial(self._mixing(), train=train, **known)
        branches = (("norm1", mix), ("norm2", self._feeding()))
        return self._residuals(x, branches, train, mask)

    def _mixing(self) -> nn.Module:
        return _made(self.mixer, name="mixer", dtype=self.dtype)

    def _feeding(self) -> nn.Module:
        arguments = {"activation": self.activation, "dtype": self.dtype}
        return _made(self.mlp, hidden=self.mlp_hidden, name="mlp", **arguments)

    def _residuals(
        self,
        x: jax.Array,
        branches: Iterable[tuple[str, Callable[[jax.Array], jax.Array]]],
        train: bool,
        mask: jax.Array | None,
    ) -> jax.Array:
        """x after one residual branch after the other.

        Args:
          branches: pairs of the name of a branch's norm and its layer.
        """
        valid = mask if self.mask_norms else None
        known = {} if valid is None else {"mask": valid}
        for name, layer in branches:

            def norm(suffix, h, name=name):
                make = self.norm(name=name + suffix, dtype=self.dtype)
                return make(only_tokens(h, valid), train=train, **known)

            def branch(h, layer=layer):
                return StochasticDepth(self.drop_path)(layer(h), train=train)

            x = residual(x, branch, norm, self.spots)
        return x

    @nn.nowrap
    def parts(self) -> tuple[Part, ...]:
        """The residual branches, first to last."""
        mixer = self.mixer(parent=None)
        mlp = self.mlp(hidden=1, activation=self.activation, parent=None)
        return (
            Part("norm1", "mixer", mixer, reads_of(mixer)),
            Part("norm2", "mlp", mlp, reads_of(mlp)),
        )

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the block with the linear layers around it."""
        sites, norm = [], self.norm(parent=None)
        for name, path, layer, reads in self.parts():
            readers = tuple(f"{path}/{read}" for read in reads)
            if self.spots.input:
                scale = self.spots.scale
                sites.append(FoldSite(name, norm, readers=readers, scale=scale))
            if self.spots.output:
                written = writes_of(layer)
                writer = f"{path}/{written}" if written else None
                sites.append(FoldSite(f"{name}_out", norm, writer=writer))
            if self.spots.stream:
                sites.append(FoldSite(name, norm, obstacle=_STREAM))
            sites.extend(sites_of(path, layer))
        return sites


class CrossBlock(Block):
    """A Block that looks at other tokens between its mixer and its MLP.

    The layer of decoders in encoder-decoders (Vaswani et al., 2017): a third residual
    branch, `norm_cross` and `cross`, in between.

    Attributes: those of Block and
      cross: factory of the mixer whose keys and values are made of the memory.
    """

    cross: Any = None

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: jax.Array,
        train: bool,
        mask: jax.Array | None,
        memory: jax.Array,
        memory_mask: jax.Array | None = None,
    ) -> jax.Array:
        """x: [B, N, C] -> same.

        Args:
          train: whether the model trains.
          mask: bool [B, N]; False is padding of x.
          memory: [B, M, C], what the cross-attention reads besides x.
          memory_mask: bool [B, M]; False is padding, which no token sees.
        """
        known = {} if mask is None else {"mask": mask}
        mix = functools.partial(self._mixing(), train=train, **known)
        cross = self.cross(name="cross", dtype=self.dtype)
        seen = {"memory": memory, "mask": memory_mask, "query_mask": mask}
        look = functools.partial(cross, train=train, **seen)
        branches = (
            ("norm1", mix),
            ("norm_cross", look),
            ("norm2", self._feeding()),
        )
        return self._residuals(x, branches, train, mask)

    @nn.nowrap
    def parts(self) -> tuple[Part, ...]:
        """The residual branches, first to last."""
        mix, feed = super().parts()
        cross = self.cross(parent=None)
        look = Part("norm_cross", "cross", cross, cross.cross_reads)
        return mix, look, feed


def sites_of(path: str, module: Any) -> Iterable[FoldSite]:
    """The norms inside a part of a model, as paths of the model."""
    for site in module.fold_sites() if hasattr(module, "fold_sites") else ():
        yield dataclasses.replace(
            site,
            path=f"{path}/{site.path}",
            readers=tuple(f"{path}/{reader}" for reader in site.readers),
            writer=f"{path}/{site.writer}" if site.writer else None,
        )


def stream_of(
    tables: Iterable[str],
    first: Mapping[str, Any],
    blocks: Mapping[str, Block],
    obstacle: str,
) -> Stream:
    """The residual stream that runs through blocks and ends in `norm`.

    Args:
      tables: paths of the parameters that are added into it.
      first: layers that write into it before the blocks, by path.
      blocks: unbound, by path.
      obstacle: why the stream cannot be changed, whatever its layers are; "" if it can.
    """
    branches = [
        (path, part) for path, block in blocks.items() for part in block.parts()
    ]
    norms = (f"{path}/{part.norm}" for path, part in branches)
    layers = {f"{path}/{part.path}": part.layer for path, part in branches}
    writers = []
    for path, layer in {**first, **layers}.items():
        writers.append(f"{path}/{writes_of(layer)}")
        if not obstacle and writes_of(layer) is None:
            name = type(layer).__name__
            obstacle = f"{path} is {name}, whose output no linear layer writes"
    return Stream((*tables, *writers), (*norms, "norm"), obstacle)
