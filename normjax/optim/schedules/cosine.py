"""Linear warmup, then a cosine."""

import optax

from normjax.core.errors import UserError
from normjax.optim.base import SCHEDULES


@SCHEDULES.register("cosine")
def cosine(
    total_steps: int,
    /,
    *,
    lr: float = 1e-3,
    warmup_fraction: float = 0.05,
    final_lr_fraction: float = 0.0,
) -> optax.Schedule:
    """Linear from 0 to `lr`, then a cosine to `lr * final_lr_fraction` at the end.

    Args:
      total_steps: optimizer updates of the whole run.

    Raises:
      UserError: a warmup that leaves nothing of the run.
    """
    warmup = round(warmup_fraction * total_steps)
    if not 0 <= warmup < total_steps:
        rule = "must leave some of the run: 0 <= warmup_fraction < 1"
        raise UserError(f"config.optim.warmup_fraction={warmup_fraction} {rule}")
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else lr,
        peak_value=lr,
        warmup_steps=warmup,
        decay_steps=total_steps,
        end_value=lr * final_lr_fraction,
    )
