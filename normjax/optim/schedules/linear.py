"""Linear warmup, then a linear decay."""

import optax

from normjax.optim.base import SCHEDULES
from normjax.optim.schedules.shapes import share, steps_of


@SCHEDULES.register("linear")
def linear(
    total_steps: int,
    /,
    *,
    lr: float = 1e-3,
    warmup_fraction: float = 0.05,
    final_lr_fraction: float = 0.0,
) -> optax.Schedule:
    """Linear from 0 to `lr`, then linear to `lr * final_lr_fraction` at the end.

    Args:
      total_steps: optimizer updates of the whole run.
      lr: the largest rate.  warmup_fraction: share of the updates that rise.
      final_lr_fraction: of the largest rate.

    Raises:
      UserError: a warmup that leaves nothing of the run.

    Example:
      >>> from normjax.optim import schedules
      >>> rate = schedules.linear(100, lr=0.5, warmup_fraction=0.2)
      >>> [float(rate(step)) for step in (0, 10, 20, 60, 100)]
      [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    warmup = steps_of("warmup_fraction", warmup_fraction, total_steps)

    def rate(count):
        rising = share(count, 0, warmup) if warmup else 1.0
        falling = share(count, warmup, total_steps - warmup)
        return lr * rising * (1 - (1 - final_lr_fraction) * falling)

    return rate
