"""The layer of residual networks as data: a tuple of branches.

    Block((mixing(norm, mixer, placed), feeding(norm, mlp, placed)))

is a layer of a transformer, `looking` between them that of a decoder which reads an
encoder. A branch says which layer it has, what that is told besides the stream, and
where its norms sit; a block only runs one after the other.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from normjax.core.errors import UserError
from normjax.core.folding import FoldSite, Stream, reads_of, writes_of
from normjax.core.registry import unwrapped
from normjax.mixers.ops.masks import only_tokens
from normjax.models.layers import Factory, LayerScale, StochasticDepth
from normjax.models.placement import BranchPlacement, residual

_STREAM = "its output is the residual stream"

Pairs = tuple[tuple[str, str], ...]


class Branch(NamedTuple):
    """One residual branch of a block, x + layer(norm(x)).

    Attributes:
      name, norm_name: of the layer and its norm among the variables of the block; the
        norm behind the layer, if there is one, is `norm_name`_out.
      norm: factory, called with `name`.
      layer: factory, called with `name`; or a module that several blocks share.
      placement: where the norms sit.
      takes: pairs (argument of the layer, what of the context it gets); what is None in
        the context, or absent, is not given.
      carries: the layer is called with `carry` as well, if there is one, and gives
        (y, new carry).
      replaces: what the layer gives, of the stream or of its norm if there is one
        before, is the new stream, not added to it.
      layer_scale: first value of a factor per channel on what the layer gives, as of
        CaiT (Touvron et al., 2021); None for no such factor.
      drop_path: rate of stochastic depth.
      reads: attribute of the layer that says what in it reads this branch's input.
    """

    name: str
    norm_name: str
    norm: Factory
    layer: Any
    placement: BranchPlacement
    takes: Pairs = ()
    carries: bool = False
    replaces: bool = False
    layer_scale: float | None = None
    drop_path: float = 0.0
    reads: str = "reads"

    def unbound(self) -> Any:
        """The layer, to be asked what it is."""
        return self.layer(parent=None)

    def readers(self) -> tuple[str, ...]:
        """Paths in the block of all that reads the norm before the layer."""
        layer = self.unbound()
        own = reads_of(layer) if self.reads == "reads" else getattr(layer, self.reads)
        return tuple(f"{self.name}/{path}" for path in own)

    def writer(self) -> str | None:
        """Path in the block of the linear layer that makes what the branch gives."""
        written = writes_of(self.unbound()) if self.layer_scale is None else None
        return f"{self.name}/{written}" if written else None


_MIXER = ("train", "mask", "positions", "decode")


def mixing(norm: Factory, mixer: Any, placement: BranchPlacement, **more) -> Branch:
    """The branch `mixer` of a token mixer, with `norm1`; `more` as of Branch.

    It carries if the mixer says so (`carries`), and is told what the layers of a stage
    share (`shared`).
    """
    make = unwrapped(mixer)[0]
    told = (*_MIXER, *getattr(make, "shared", ()))
    takes = tuple(zip(told, told, strict=True))
    more = {"carries": getattr(make, "carries", False), **more}
    return Branch("mixer", "norm1", norm, mixer, placement, takes, **more)


def looking(norm: Factory, cross: Any, placement: BranchPlacement, **more) -> Branch:
    """The branch `cross` of a mixer that reads other tokens, with `norm_cross`.

    Those are `memory` in the context, with the mask `memory_mask`.
    """
    takes = (
        ("train", "train"),
        ("memory", "memory"),
        ("mask", "memory_mask"),
        ("query_mask", "mask"),
    )
    more = {"reads": "cross_reads", **more}
    return Branch("cross", "norm_cross", norm, cross, placement, takes, **more)


def positioning(name: str, layer: Any) -> Branch:
    """A branch of that name without norm: x + layer(x), as of `PositionConv`."""
    return Branch(name, f"{name}_norm", _no_norm, layer, BranchPlacement())


def _no_norm(**_: Any) -> None:
    """The norm of a branch that has none."""


def feeding(norm: Factory, mlp: Any, placement: BranchPlacement, **more) -> Branch:
    """The branch `mlp` of a layer for each position, with `norm2`.

    It is told what it says (`told`), such as `train`.
    """
    told = getattr(unwrapped(mlp)[0], "told", ())
    more = {"takes": tuple(zip(told, told, strict=True)), **more}
    return Branch("mlp", "norm2", norm, mlp, placement, **more)


class Block(nn.Module):
    """Residual branches, one after the other.

    Attributes:
      branches: first to last.
      mask_norms: norms get the mask as well, so that padding does not count in them,
        and read 0 there, for the backward pass of some averages over all positions.
    """

    branches: tuple[Branch, ...]
    mask_norms: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        context: Mapping[str, jax.Array | None] | None = None,
        decode: bool = False,
        carry: Any = None,
    ) -> Any:
        """x: [B, L, C] or [B, H, W, C] -> same; (same, carry) where there is a carry.

        Args:
          train: whether the model trains.
          context: what branches may be told: `mask`, `positions`, as of the mixers,
            `memory`, `memory_mask`, and whatever a model has for its layers.
          decode: as of the mixers.
          carry: what goes through the blocks of a stage, from branch to branch: a
            tree that those change that carry.
        """
        known = {k: v for k, v in (context or {}).items() if v is not None}
        known |= {"train": train, **({"decode": True} if decode else {})}
        carried = carry
        for branch in self.branches:
            x, carried = self._run(branch, x, known, carried)
        return x if carry is None else (x, carried)

    def _run(
        self, branch: Branch, x: jax.Array, known: Mapping[str, Any], carry: Any
    ) -> tuple[jax.Array, Any]:
        valid = known.get("mask") if self.mask_norms else None
        masked = {} if valid is None else {"mask": valid}

        def norm(suffix, h):
            make = branch.norm(name=branch.norm_name + suffix)
            return make(only_tokens(h, valid), train=known["train"], **masked)

        def layer(h):
            nonlocal carry
            made, told = branch.layer, dict(branch.takes)
            carries = branch.carries and carry is not None
            made = made if isinstance(made, nn.Module) else made(name=branch.name)
            told = {name: known[what] for name, what in told.items() if what in known}
            y = made(h, **told, **({"carry": carry} if carries else {}))
            if carries:
                y, carry = y
            if branch.layer_scale is not None:
                name = f"{branch.name}_layer_scale"
                y = LayerScale(branch.layer_scale, name=name)(y)
            return StochasticDepth(branch.drop_path)(y, train=known["train"])

        if branch.replaces:
            return layer(norm("", x) if branch.placement.pre else x), carry
        return residual(x, layer, norm, branch.placement), carry

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """Every norm of the block with the linear layers around it."""
        sites = []
        for branch in self.branches:
            name, norm = branch.norm_name, branch.norm(parent=None)
            place = branch.placement
            if place.pre:
                readers = branch.readers()
                sites.append(FoldSite(name, norm, readers, scale=place.input_scale))
            if place.output:
                sites.append(FoldSite(f"{name}_out", norm, writer=branch.writer()))
            if place.post or place.stream:
                sites.append(FoldSite(name, norm, obstacle=_STREAM))
            sites.extend(sites_of(branch.name, branch.unbound()))
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
    branches = [(path, b) for path, block in blocks.items() for b in block.branches]
    bare = [f"{path}/{b.name}" for path, b in branches if not b.placement.pre]
    if bare and not obstacle:
        obstacle = f"{bare[0]} reads it without norm"
    norms = (f"{path}/{branch.norm_name}" for path, branch in branches)
    written = {path: (layer, writes_of(layer)) for path, layer in first.items()}
    for path, branch in branches:
        _, _, inside = (branch.writer() or "").partition("/")
        written[f"{path}/{branch.name}"] = branch.unbound(), inside or None
    for path, (layer, writer) in written.items():
        if not obstacle and writer is None:
            name = type(layer).__name__
            obstacle = f"{path} is {name}, whose output no linear layer writes"
    writers = (f"{path}/{writer}" for path, (_, writer) in written.items())
    return Stream((*tables, *writers), (*norms, "norm"), obstacle)


def check_alike(blocks: Iterable[Block]) -> None:
    """Raises UserError for blocks, unbound, that are no repetition of the first."""
    first, *others = blocks
    for i, other in enumerate(others, 1):
        if name := difference(first, other):
            hint = "scan_layers needs layers that are all alike"
            raise UserError(f"{name} of layers 0 and {i} differ: {hint}")


def difference(one: Block, other: Block) -> str:
    """What two blocks differ in, of their first such branch; "" if they are alike."""

    def made_of(value):
        """Partial functions as what they are made of."""
        if isinstance(value, functools.partial):
            inside = {k: made_of(v) for k, v in value.keywords.items()}
            return value.func, value.args, inside
        return value

    for mine, theirs in zip(one.branches, other.branches, strict=True):
        for field in Branch._fields:
            if made_of(getattr(mine, field)) != made_of(getattr(theirs, field)):
                return mine.name if field == "layer" else field
    return ""
