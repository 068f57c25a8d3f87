"""What the contracts need to know of one configuration of a token mixer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A mixer as the tests build it.

    Attributes:
      name: registry key.  kwargs: arguments of the module.
      oracle: float64 NumPy forward pass (x, params, mask, kwargs) -> y on plain dicts
        of arrays, written from the equation; it shares no code with normjax.
      shape: of the input: [B, L, D] or [B, H, W, C].
      ranges: intervals from which parameters are drawn, by the last name of their path;
        the others are normal with standard deviation 0.5.
      held: function (x, params, mask, kwargs) -> what gradients do not go through; the
        oracle gets that of the case as `held` among its kwargs.
      causal: whether no position sees a later one in this configuration.
    """

    name: str
    oracle: Callable
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (3, 7, 6)
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    held: Callable | None = None
    causal: bool = False

    def __str__(self) -> str:
        arguments = ",".join(f"{k}={v}" for k, v in self.kwargs.items())
        return f"{self.name}({arguments})"
