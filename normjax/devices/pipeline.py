"""Scanned layers in stages, one after the other on devices of their own (GPipe).

The layers of a model are split over the axis `stage` of the mesh, each device holding
those of its stage. A batch goes through in microbatches, which are at different stages
at one time (Huang et al., 2019): in tick t stage s computes microbatch t - s and hands
it on, so that all M are through after M + S - 1 ticks. In S - 1 of them a stage has
nothing to do, its bubble. The backward pass is the transpose of this one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from normjax.core.collections import (
    CACHE,
    DIAGNOSTICS,
    LOSSES,
    TRANSIENT,
    hold_counters,
)
from normjax.core.errors import UserError
from normjax.core.scanned import scanned_of
from normjax.devices.mesh import (
    BATCH_AXES,
    COPIES,
    FSDP,
    STAGE,
    TENSOR,
    join_rows,
    split_rows,
)

SOWN = (DIAGNOSTICS, LOSSES)
"""Of these the mean over microbatches is kept."""

DROPOUT = "dropout"


def bubble(stages: int, microbatches: int) -> float:
    """The share of time in which a stage waits: (S - 1) / (M + S - 1)."""
    return (stages - 1) / (microbatches + stages - 1)


def check_stages(mesh: Mesh, model: Any) -> None:
    """Raises UserError for a mesh whose stages cannot hold the layers of `model`."""
    stages = mesh.shape[STAGE]
    if stages == 1:
        return
    where, name = f"config.mesh.stage={stages}", type(model).__name__
    if mesh.shape[FSDP] * mesh.shape[TENSOR] > 1:
        sizes = f"fsdp={mesh.shape[FSDP]}, tensor={mesh.shape[TENSOR]}"
        raise UserError(f"{where} goes with config.mesh fsdp=1, tensor=1, got {sizes}")
    if not scanned_of(model):
        scans = hasattr(model, "scan_layers") and hasattr(model, "unrolled")
        hint = "set config.model.scan_layers=True" if scans else "it has none"
        raise UserError(
            f"{where} splits scanned layers, as of a decoder; {name}: {hint}"
        )
    depth = getattr(model, "host", model).depth
    if depth % stages:
        raise UserError(f"{where} does not divide config.model.depth={depth}")


class Pipeline(NamedTuple):
    """A `core.scanned.Runner`: layers in the stages of a mesh.

    Each microbatch is computed as by itself: norms take the statistics of its examples;
    running ones move after each, in order, and counters once. Random numbers differ by
    layer and by microbatch.

    Attributes:
      microbatches: M of a call, whose row i is in i % M.
    """

    mesh: Mesh
    microbatches: int

    def can_run(self, layer: nn.Module, x: jax.Array) -> bool:
        """Not rows that do not divide, nor where more is looked at than in training."""
        parts = self.microbatches * math.prod(self.mesh.shape[a] for a in COPIES)
        looked = (CACHE, *(c for c in TRANSIENT if c not in SOWN))
        watched = any(map(layer.is_mutable_collection, looked))
        return x.shape[0] % parts == 0 and not watched

    def run(self, layer: nn.Module, depth: int, x: jax.Array, *arguments: Any) -> Any:
        """As `core.scanned.run_layers`."""
        pure = _Pure.of(layer, arguments)
        stage = _Stage(self.mesh.shape[STAGE], pure.call)
        mapped = jax.shard_map(
            stage.run,
            mesh=self.mesh,
            in_specs=(P(STAGE), P(STAGE), P(), P()),
            out_specs=P(STAGE),
            axis_names={STAGE},
            check_vma=False,
        )
        parts = split_rows((x, pure.arrays), self.microbatches)
        parts = self._spread(parts, None, COPIES)
        constants = pure.constants, jnp.arange(depth)
        ys, state, means = mapped(constants, pure.state, parts, pure.key)
        pure.leave({**state, **means})
        return self._spread(join_rows(ys[-1]), BATCH_AXES)

    def _spread(self, tree: Any, *axes: Any) -> Any:
        lie = NamedSharding(self.mesh, P(*axes))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, lie), tree)


def in_microbatches(
    module: nn.Module, count: int, x: jax.Array, *args: Any, **kwargs: Any
) -> jax.Array:
    """module(x, *args, **kwargs) of one microbatch after the other, as in a `Pipeline`.

    Args:
      module: bound.  count: of microbatches.  x: [B, ...] -> same.
    """
    pure = _Pure.of(module, args, kwargs)

    def one(carry, part):
        (state, sums), (number, own, given) = carry, part
        held, key = hold_counters(pure.state, state), _folded(pure.key, number)
        y, state, sown = pure.call({**pure.constants, **held}, own, given, key)
        return (state, jax.tree.map(lambda a, b: a + b / count, sums, sown)), y

    parts = jnp.arange(count), *split_rows((x, pure.arrays), count)
    first = jax.tree.map(lambda a: a[0], parts[1:])
    variables = {**pure.constants, **pure.state}
    sums = _zeros(pure.call, variables, *first, pure.key)
    (state, means), ys = jax.lax.scan(one, (pure.state, sums), parts)
    pure.leave({**state, **means})
    return join_rows(ys)


class _Stage(NamedTuple):
    """What a device does: a program of its own, along the axis of stages."""

    count: int
    call: Callable[..., Any]

    def run(self, constants, before, parts, key):
        """Outputs [1, M, ...] of this stage, its state, and the means of what is sown.

        Args:
          constants, before: of the stage's layers.  parts: (x, arguments), [M, ...].
        """
        stage, count = jax.lax.axis_index(STAGE), len(parts[0])
        through = functools.partial(self._layers, constants)
        next_one = [(i, i + 1) for i in range(self.count - 1)]

        def tick(carry, time):
            got, state, sums = carry
            number = jnp.clip(time - stage, 0, count - 1)
            busy = (time >= stage) & (time < stage + count)
            own, given = jax.tree.map(lambda a: a[number], parts)
            x = jnp.where(stage == 0, own, got)
            held, own_key = hold_counters(before, state), _folded(key, number)
            y, moved, sown = through(held, x, given, own_key)
            keep = functools.partial(jnp.where, busy)
            state = jax.tree.map(keep, moved, state)
            sums = jax.tree.map(lambda a, b: a + keep(b, 0) / count, sums, sown)
            return (jax.lax.ppermute(y, STAGE, next_one), state, sums), y

        # What is computed in the bubble is thrown away, and must be finite: no zeros.
        first = jax.tree.map(lambda a: a[0], parts)
        start = first[0], before, _zeros(through, before, *first, key)
        ticks = jnp.arange(count + self.count - 1)
        (_, state, means), ys = jax.lax.scan(tick, start, ticks)
        return ys[None, self.count - 1 :], state, means

    def _layers(self, constants, state, x, given, key):
        """The stage's layers in turn: x, their new state, and what they sow."""

        def one(x, layer):
            (constants, number), state = layer
            own = {**constants, **state}
            y, *new = self.call(own, x, given, _folded(key, number))
            return y, new

        y, (state, sown) = jax.lax.scan(one, x, (constants, state))
        return y, state, sown


class _Pure(NamedTuple):
    """A call of a bound module as a function of its variables.

    Attributes:
      constants, state: its variables.  arrays: in the arguments.  key: of dropout.
      call: (variables, x, arrays, key) -> (y, state, what is sown).
    """

    module: nn.Module
    constants: dict[str, Any]
    state: dict[str, Any]
    arrays: list[jax.Array]
    key: jax.Array | None
    call: Callable[..., Any]

    @classmethod
    def of(cls, module: nn.Module, args: Any = (), kwargs: Any = None) -> "_Pure":
        """Of module(x, *args, **kwargs)."""
        variables = {c: t for c, t in module.variables.items() if c not in TRANSIENT}
        changing = [c for c in variables if module.is_mutable_collection(c)]
        state = {c: variables.pop(c) for c in changing}
        mutable = [*state, *(c for c in SOWN if module.is_mutable_collection(c))]
        leaves, structure = jax.tree.flatten((args, kwargs or {}))
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def call(variables, x, arrays, key):
            rest = dict(zip(where, arrays, strict=True))
            placed = [rest.get(i, leaf) for i, leaf in enumerate(leaves)]
            args, kwargs = structure.unflatten(placed)
            run = functools.partial(_called, module, x, args, kwargs)
            rngs = {} if key is None else {DROPOUT: key}
            given = {c: _at(module.path, tree) for c, tree in variables.items()}
            y, new = _Around(run).apply(given, rngs=rngs, mutable=mutable)
            new = {c: _within(module.path, tree) for c, tree in new.items()}
            sown = {c: new.pop(c) for c in SOWN if c in new}
            return y, {c: new.get(c, variables[c]) for c in state}, sown

        key = module.make_rng(DROPOUT) if module.has_rng(DROPOUT) else None
        return cls(module, variables, state, [leaves[i] for i in where], key, call)

    def leave(self, collections: dict[str, Any]) -> None:
        """Give the module the values that its call leaves behind."""
        for collection, tree in collections.items():
            for name, value in tree.items():
                self.module.put_variable(collection, name, value)


class _Around(nn.Module):
    """What stands around a module, so that it has its path: random keys, schedules and
    those who watch it know it by that."""

    inside: Callable[[nn.Module, int], Any]
    depth: int = 0

    @nn.compact
    def __call__(self):
        return self.inside(self, self.depth)


def _called(module, x, args, kwargs, parent, depth):
    """module(x, ...), where it belongs under `parent`, which has `depth` parents."""
    name = module.path[depth]
    if depth == len(module.path) - 1:
        return module.clone(parent=parent, name=name)(x, *args, **kwargs)
    return _Around(parent.inside, depth + 1, parent=parent, name=name)()


def _at(path: Sequence[str], tree: Any) -> Any:
    return functools.reduce(lambda inner, name: {name: inner}, reversed(path), tree)


def _within(path: Sequence[str], tree: Any) -> Any:
    return functools.reduce(lambda outer, name: outer.get(name, {}), path, tree)


def _folded(key: jax.Array | None, number: jax.Array) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _zeros(call: Callable[..., Any], *arguments: Any) -> Any:
    """Of what is sown: the last that `call` gives."""
    sown = jax.eval_shape(call, *arguments)[-1]
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sown)
