"""One row per configuration of a norm; the contracts in contracts_test.py run on all.

A new norm adds one row (or more) and inherits every contract.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tests.norms import oracles


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
    """

    name: str
    oracle: Callable
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (4, 7, 6)
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    large_mean: bool = True

    def __str__(self) -> str:
        arguments = ",".join(f"{k}={v}" for k, v in self.kwargs.items())
        return f"{self.name}({arguments})"


ROWS = [
    Row("layer_norm", oracles.layer_norm),
    Row("layer_norm", oracles.layer_norm, {"use_bias": False, "epsilon": 1e-3}),
    Row("rms_norm", oracles.rms_norm, large_mean=False),
    Row("rms_norm", oracles.rms_norm, {"use_scale": False}, large_mean=False),
    Row("none", oracles.none, large_mean=False),
    Row("batch_norm", oracles.batch_norm),
    Row("batch_norm", oracles.batch_norm, {"unbiased_running_var": True}),
    Row("batch_norm", oracles.batch_norm, {"momentum": 0.5}, shape=(4, 3, 5, 6)),
    Row("repbn", oracles.repbn, large_mean=False),
    Row("repbn", oracles.repbn, {"skip_masked": True}, large_mean=False),
    *(
        Row(
            "prepbn",
            oracles.prepbn,
            {"warmup_steps": 2, "decay_steps": 4, **extra},
            stats={"step": step},
            large_mean=False,
        )
        for step, extra in (
            (3, {"start": 0.8}),
            (0, {}),
            (4, {"layer_norm": "rms_norm"}),
            (9, {}),
        )
    ),
]
