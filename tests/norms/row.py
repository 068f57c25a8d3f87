"""What the contracts need to know of one configuration of a norm."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A norm as the tests build it.

    Attributes:
      name: registry key.  kwargs: arguments of the module.
      oracle: float64 NumPy forward pass (see oracles.py).
      shape: of the input that it is tested on.
      stats: initial values of the leaves of `batch_stats` that matter, by path; others
        are drawn at random.
      large_mean: whether the output has standard deviation 1 on data of mean 1e4.
      gradient: for a norm whose gradient is approximate by design, a float64 NumPy
        function (x, dy, params, stats, overwrite, mask, kwargs) -> (dx, gradients of
        the parameters, next value of `_overwrite_with_gradient`).
    """

    name: str
    oracle: Callable
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (4, 7, 6)
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    large_mean: bool = True
    gradient: Callable | None = None

    def __str__(self) -> str:
        arguments = ",".join(f"{k}={v}" for k, v in self.kwargs.items())
        return f"{self.name}({arguments})"
