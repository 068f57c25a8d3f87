"""Bounds of the numbers of a config, checked before anything is made of them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from normjax.core.errors import UserError

LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Range(NamedTuple):
    """Numbers from `low` to `high`; `open` leaves `high` out."""

    low: float
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.open and value == self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be at least {self.low}"
        return f"lie in [{self.low}, {self.high}{')' if self.open else ']'}"


POSITIVE, COUNT = Range(1), Range(0)
BELOW_ONE, FRACTION = Range(0, 1, open=True), Range(0, 1)

FIELDS: Mapping[str, Range] = {
    "batch_size": POSITIVE,
    "total_steps": POSITIVE,
    "microbatches": POSITIVE,
    "log_every": POSITIVE,
    "eval_every": POSITIVE,
    "checkpoint.every": POSITIVE,
    "checkpoint.keep_last": POSITIVE,
    "checkpoint.keep_best": COUNT,
    "recalibrate_batches": COUNT,
    "profile_steps": COUNT,
    "diagnostics_every": COUNT,
    "ema_decay": BELOW_ONE,
    "z_loss_weight": COUNT,
    "data.workers": Range(0, 512),
    "data.label_smoothing": FRACTION,
    "data.mixup_alpha": COUNT,
    "data.cutmix_alpha": COUNT,
    "data.erase_probability": FRACTION,
    "data.repeats": POSITIVE,
    "optim.lr": COUNT,
    "optim.weight_decay": COUNT,
    "optim.final_lr_fraction": COUNT,
    "optim.beta1": BELOW_ONE,
    "optim.beta2": BELOW_ONE,
    "optim.clip_norm": COUNT,
    "optim.adaptive_clip": COUNT,
    "model.dim": POSITIVE,
    "model.depth": Range(1, 10_000),
    "model.num_heads": POSITIVE,
}
"""Of the fields that a config has; others may be any number."""

OF_MODEL: Mapping[str, Range] = {
    "epsilon": COUNT,
    "momentum": FRACTION,
    "drop_path_rate": BELOW_ONE,
    "dropout_rate": BELOW_ONE,
}
"""Of fields with these names anywhere in `config.model`, whose integers are counts."""


def check_numbers(config: Any) -> None:
    """Check every number of a config.

    All are finite in float32, integers have 64 bits, `FIELDS` and `OF_MODEL` hold.

    Raises:
      UserError: the first that is not allowed, and what is.
    """
    for field, value in _numbers(config.to_dict()):
        where = f"config.{field}"
        if isinstance(value, int):
            if abs(value) > LARGEST_INT:
                raise UserError(f"{where} is beyond 64 bits: {value}")
        elif not abs(value) <= LARGEST_FLOAT:
            raise UserError(f"{where} must be finite in float32, got {value}")
        allowed = _range_of(field, value)
        if allowed and not allowed.holds(value):
            raise UserError(f"{where} must {allowed}, got {value}")


def _range_of(field: str, value: float) -> Range | None:
    if field in FIELDS or not field.startswith("model."):
        return FIELDS.get(field)
    name = field.rpartition(".")[2]
    return OF_MODEL.get(name, COUNT if isinstance(value, int) else None)


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number in a tree of dicts, lists and tuples, with its path."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
