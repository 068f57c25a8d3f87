"""Transformations that are written for one parameter, and decays beside them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.core.moments import at_least_float32
from normjax.core.scanned import per_layer
from normjax.optim.groups import path_name

Kept = dict[str, jax.Array]


class Parameter(NamedTuple):
    """What a step is told of its parameter: its path, and whether it decays."""

    path: str
    decays: bool


class PerParameterState(NamedTuple):
    """Updates made, and by name a tree of what is kept of every parameter."""

    count: jax.Array
    kept: dict[str, Any]


Start = Callable[[Parameter, jax.Array], Kept]
Step = Callable[
    [Parameter, jax.Array, jax.Array, jax.Array, Kept], tuple[jax.Array, Kept]
]


def per_parameter(
    start: Start, step: Step, *, decayed: Any = None, scanned: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """The transformation of all parameters that `step` is of one.

    Gradients, parameters and what is kept are in at least float32.

    Args:
      start: (parameter, p) -> what is kept of p before the first step.
      step: (parameter, t, g, p, kept) -> (update, kept) at update t = 1, 2, ...
      decayed: which decay, a tree of bools or a function of the parameters; None: all.
      scanned: names at the root of parameters with a first axis of layers, each of
        which is treated by itself (see `core.scanned`).
    """

    def described(params):
        flags = decayed(params) if callable(decayed) else decayed
        leaves, structure = jax.tree_util.tree_flatten_with_path(params)
        flags = jax.tree.map(lambda _: True, params) if flags is None else flags
        known = structure.flatten_up_to(flags)
        names = [path_name(path) for path, _ in leaves]
        parameters = list(map(Parameter, names, known))
        return parameters, [at_least_float32(x) for _, x in leaves], structure

    def over_layers(function, parameter):
        return per_layer(
            lambda *arrays: function(parameter, *arrays), parameter.path, scanned
        )

    def init(params):
        parameters, arrays, structure = described(params)
        pairs = zip(parameters, arrays, strict=True)
        each = [over_layers(start, parameter)(p) for parameter, p in pairs]
        return PerParameterState(jnp.zeros([], jnp.int32), _by_name(structure, each))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "this transformation needs params: update(g, state, params)"
            )
        parameters, arrays, structure = described(params)
        gradients = structure.flatten_up_to(updates)
        count: Any = optax.safe_increment(state.count)
        made, each = [], []
        for i, (parameter, g, p) in enumerate(
            zip(parameters, gradients, arrays, strict=True)
        ):
            kept = _of(structure, state.kept, i)

            def one(parameter, g, p, kept):
                return step(parameter, count, g, p, kept)

            new, now = over_layers(one, parameter)(at_least_float32(g), p, kept)
            made.append(new)
            each.append(now)
        kept = _by_name(structure, each)
        return structure.unflatten(made), PerParameterState(count, kept)

    return optax.GradientTransformation(init, update)


def zeros(*names: str) -> Start:
    """The start of what keeps arrays of the parameter's shape by these names."""
    return lambda parameter, p: dict.fromkeys(names, jnp.zeros_like(p))


def _by_name(structure: Any, each: list[Kept]) -> dict[str, Any]:
    """Trees by name of dicts by parameter; empty where one keeps nothing by a name."""
    names = dict.fromkeys(name for kept in each for name in kept)
    return {
        name: structure.unflatten([k.get(name, optax.MaskedNode()) for k in each])
        for name in names
    }


def _of(structure: Any, kept: dict[str, Any], i: int) -> Kept:
    found = {name: structure.flatten_up_to(tree)[i] for name, tree in kept.items()}
    return {k: v for k, v in found.items() if not isinstance(v, optax.MaskedNode)}


def decay_after(
    rate: optax.ScalarOrSchedule, weight_decay: float, decayed: Any
) -> optax.GradientTransformation:
    """p <- p (1 - rate weight_decay) of the parameters that the update leads to.

    It comes last, behind the learning rate, of which it is quadratic.

    Args:
      rate: the learning rate, or a schedule.  weight_decay: times the rate.
      decayed: which decay, a tree of bools or a function of the parameters; None: all.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError("decay_after: update(updates, state, params)")
        now: Any = rate(state.count) if callable(rate) else rate
        updates = jax.tree.map(
            lambda u, p: u - now * weight_decay * (p + u), updates, params
        )
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    if not weight_decay:
        return optax.identity()
    decay = optax.GradientTransformation(init, update)
    return decay if decayed is None else optax.masked(decay, decayed)


def scheduled(
    direction: optax.GradientTransformation,
    rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decayed: Any,
    *,
    after: bool = False,
) -> optax.GradientTransformation:
    """A direction of descent with its rate and decay.

        p <- p (1 - rate weight_decay) - rate u,   or, after:
        p <- (p - rate u) (1 - rate weight_decay)

    Args:
      direction: its u.  rate: the learning rate, or a schedule.
      weight_decay: times the rate.  decayed: which decay; None: all.
      after: whether the decay is that of the new parameters.
    """
    step = optax.scale_by_learning_rate(rate)
    if after:
        return optax.chain(direction, step, decay_after(rate, weight_decay, decayed))
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    return optax.chain(direction, decay, step)


def rows_of(x: jax.Array, axis: int = -1) -> jax.Array:
    """[units, the rest]: a row for each index of the unit axis."""
    return jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def from_rows(rows: jax.Array, like: jax.Array, axis: int = -1) -> jax.Array:
    """The array of the shape of `like` of which these are the rows."""
    moved = jnp.moveaxis(like, axis, 0).shape
    return jnp.moveaxis(rows.reshape(moved), 0, axis)
