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

    As of SGDR without restarts (Loshchilov & Hutter, 2017).

    Args:
      total_steps: optimizer updates of the whole run.
      lr: the largest rate.  warmup_fraction: share of the updates that are linear.
      final_lr_fraction: of the largest rate.

    Raises:
      UserError: a warmup that leaves nothing of the run.

    Example:
      >>> from normjax.optim import schedules
      >>> shape = {"warmup_fraction": 0.2, "final_lr_fraction": 0.5}
      >>> rate = schedules.cosine(100, lr=0.5, **shape)
      >>> [float(rate(step)) for step in (0, 10, 20, 60, 100)]
      [0.0, 0.25, 0.5, 0.375, 0.25]
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
