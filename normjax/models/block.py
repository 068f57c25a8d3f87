"""The layer of transformers: a token mixer and an MLP, each a residual branch."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.folding import FoldSite
from normjax.models.layers import MLP, Factory, StochasticDepth
from normjax.models.placement import Spots, residual

_STREAM = "its output is the residual stream"


def _made(part: Any, **arguments: Any) -> Any:
    """What a factory makes, or the module that several blocks share."""
    return part if isinstance(part, nn.Module) else part(**arguments)


class Block(nn.Module):
    """One transformer layer: a token mixer and an MLP, each a residual branch.

    Attributes:
      norm, mixer, activation: factories; the mixer's needs no further arguments.
        Blocks may share one mixer: a module in place of its factory.
      mlp_hidden: width inside the MLP.  drop_path: rate of stochastic depth.
      spots: where the norms of both branches sit.
      mlp: factory of the MLP, or the module that blocks share.
      mask_norms: norms get the mask as well, so that padding does not count in them.
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
        valid = {} if mask is None else {"mask": mask}
        known = valid if positions is None else {**valid, "positions": positions}
        known = {**known, "decode": True} if decode else known
        mixer = _made(self.mixer, name="mixer", dtype=self.dtype)
        arguments = {"activation": self.activation, "dtype": self.dtype}
        mlp = _made(self.mlp, hidden=self.mlp_hidden, name="mlp", **arguments)
        branches = (("norm1", lambda h: mixer(h, train=train, **known)), ("norm2", mlp))
        for name, layer in branches:

            def norm(suffix, h, name=name):
                make = self.norm(name=name + suffix, dtype=self.dtype)
                return make(h, train=train, **(valid if self.mask_norms else {}))

            def branch(h, layer=layer):
                return StochasticDepth(self.drop_path)(layer(h), train=train)

            x = residual(x, branch, norm, self.spots)
        return x

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the block with the linear layers around it."""
        sites, norm = [], self.norm(parent=None)
        mixer = self.mixer(parent=None)
        mlp = self.mlp(hidden=1, activation=self.activation, parent=None)
        branches = ("norm1", "mixer", mixer, "proj"), ("norm2", "mlp", mlp, "fc2")
        for name, path, layer, last in branches:
            readers = tuple(f"{path}/{read}" for read in layer.reads)
            if self.spots.input:
                scale = self.spots.scale
                sites.append(FoldSite(name, norm, readers=readers, scale=scale))
            if self.spots.output:
                writer = f"{path}/{last}" if readers else None
                sites.append(FoldSite(f"{name}_out", norm, writer=writer))
            if self.spots.stream:
                sites.append(FoldSite(name, norm, obstacle=_STREAM))
            sites.extend(sites_of(path, layer))
        return sites


def sites_of(path: str, module: Any) -> Iterable[FoldSite]:
    """The norms inside a part of a model, as paths of the model."""
    for site in module.fold_sites() if hasattr(module, "fold_sites") else ():
        yield dataclasses.replace(
            site,
            path=f"{path}/{site.path}",
            readers=tuple(f"{path}/{reader}" for reader in site.readers),
            writer=f"{path}/{site.writer}" if site.writer else None,
        )
