"""What layers of a model give, beside what it answers."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from normjax.core.collections import INTERMEDIATES
from normjax.core.scanned import is_scanned, paths_of_layers, scanned_of

CALL = "__call__"


class Layer(NamedTuple):
    """A layer that is called once and gives an array [B, ..., C] of positions.

    Attributes:
      name: "blocks_3/mlp".  positions: how many.
      path: of the module: "blocks/mlp" where it is the one of all scanned layers.
      number: which of those; None: not scanned.
    """

    name: str
    positions: int
    path: str
    number: int | None = None


class Observed(NamedTuple):
    """A model that gives (its outputs, what `layers` give, in that order).

    In its place wherever only `apply` is called.

    Attributes:
      model: anything with the `apply` of a Flax module.
    """

    model: Any
    layers: tuple[Layer, ...]

    def apply(self, variables: dict[str, Any], x: Any, **arguments: Any) -> Any:
        """As `model.apply`, with `mutable`."""
        paths = {layer.path for layer in self.layers}
        arguments["mutable"] = [*arguments["mutable"], INTERMEDIATES]
        outputs, new = self.model.apply(
            variables,
            x,
            **arguments,
            capture_intermediates=lambda module, method: (
                method == CALL and "/".join(module.path) in paths
            ),
        )
        rest = {name: value for name, value in new.items() if name != INTERMEDIATES}
        found = {path: calls[0] for path, calls in _outputs(new).items()}
        picked = ((found[layer.path], layer.number) for layer in self.layers)
        return (outputs, tuple(y if i is None else y[i] for y, i in picked)), rest


def layers_of(model: nn.Module, x: Any, known: dict[str, Any]) -> list[Layer]:
    """The layers of a model, in the order in which they are through.

    Nothing is computed.

    Args:
      x, known: what it is called with, of one row.
    """
    seen: list[str] = []

    def note(module, method):
        if method == CALL and module.path:
            seen.append("/".join(module.path))
        return method == CALL

    def init(x, known):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        arguments = {"mutable": True, "capture_intermediates": note, "train": False}
        return model.init(keys, x, **known, **arguments)

    found = _outputs(jax.eval_shape(init, x, known))
    shapes = {
        path: calls[0].shape
        for path, calls in found.items()
        if len(calls) == 1 and hasattr(calls[0], "shape")
    }
    return list(_in_order(dict.fromkeys(seen), shapes, scanned_of(model)))


def _outputs(variables: Any) -> dict[str, tuple]:
    """By path, what was given in each call."""
    inside: Any = flatten_dict(dict(variables.get(INTERMEDIATES, {})))
    return {"/".join(k[:-1]): calls for k, calls in inside.items() if k[-1] == CALL}


def _in_order(
    seen: Iterable[str], shapes: Mapping[str, tuple], scanned: Collection[str]
) -> Iterator[Layer]:
    """The layers, scanned ones one behind the other."""
    for _, group in itertools.groupby(seen, key=lambda path: path.split("/")[0]):
        rows = [
            _layers_at(path, shapes[path], scanned) for path in group if path in shapes
        ]
        yield from itertools.chain.from_iterable(zip(*filter(None, rows), strict=True))


def _layers_at(path: str, shape: tuple, scanned: Collection[str]) -> list[Layer]:
    """Those that a module is; none where what it gives has no rows of positions."""
    within = is_scanned(path, scanned)
    depth, shape = (shape[0], shape[1:]) if within else (1, shape)
    if len(shape) < 3 or shape[0] != 1:
        return []
    names, positions = paths_of_layers(path, scanned, depth), math.prod(shape[1:-1])
    return [
        Layer(name, positions, path, i if within else None)
        for i, name in enumerate(names)
    ]
