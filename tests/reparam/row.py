"""What the contracts need to know of one configuration of a reparameterization."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

DENSE = {"kernel": (5, 6), "bias": (6,)}
CONV = {"kernel": (3, 2, 4, 6), "bias": (6,)}
DEPTHWISE = {"kernel": (3, 3, 6)}
NORM = {"scale": (6,), "bias": (6,)}
RMS_NORM = {"scale": (6,)}


def standing_still(layer, own, state, kwargs, train):
    """The state of what has none."""
    del layer, own, kwargs, train
    return {}, state


@dataclasses.dataclass(frozen=True)
class Row:
    """A reparameterization as the tests build it.

    Attributes:
      name: registry key.  kwargs: its arguments.
      value: float64 NumPy function (layer, own, vectors, kwargs) -> weights.
      start: float64 NumPy function (layer, kwargs) -> initial own parameters; None
        where they are random.
      move: float64 NumPy function (layer, own, state, kwargs, train) -> (what `value`
        takes as constants, next state).
      layers: shapes of the raw weights that it is tested on.
    """

    name: str
    value: Callable
    start: Callable | None = lambda layer, kwargs: {}
    move: Callable = standing_still
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layers: tuple[Mapping[str, tuple[int, ...]], ...] = (DENSE, CONV, DEPTHWISE)
