"""Bounds of the numbers of a config, checked before anything is made of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from normjax.core.errors import UserError
from normjax.core.ranges import (
    BELOW_ONE,
    COUNT,
    FRACTION,
    OF_ARGUMENTS,
    POSITIVE,
    Range,
    numbers_in,
)

LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)

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
"""Of the fields that a config has. Those of `config.model` with the name of an argument
that has a range have that (`core.ranges`); its other integers are counts."""


def check_numbers(config: Any) -> None:
    """Check every number of a config.

    All are finite in float32, integers have 64 bits, and lie where they may.

    Raises:
      UserError: the first that is not allowed, and what is.
    """
    for field, value in numbers_in(config.to_dict()):
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
    return OF_ARGUMENTS.get(name, COUNT if isinstance(value, int) else None)
