"""A cosine that starts again with a warmup of its own."""

import math

import jax.numpy as jnp
import optax

from normjax.core.errors import UserError
from normjax.optim.base import SCHEDULES
from normjax.optim.schedules.shapes import steps_of


@SCHEDULES.register("rewarmed_cosine")
def rewarmed_cosine(
    total_steps: int,
    /,
    *,
    lr: float = 1e-3,
    warmup_fraction: float = 0.05,
    repeats: int = 2,
    final_lr_fraction: float = 0.0,
) -> optax.Schedule:
    """Periods of a linear warmup to `lr` and a cosine (Ibrahim et al., 2024).

    The first rises from 0, the later ones from `lr * final_lr_fraction`, where the one
    before ended.

    Args:
      total_steps: optimizer updates of the whole run.
      lr: the largest rate.  warmup_fraction: share of the run that rises, in a period.
      repeats: the periods, all of the same length.
      final_lr_fraction: of the largest rate.

    Raises:
      UserError: a warmup that leaves nothing of a period, or no period.

    Example:
      >>> from normjax.optim import schedules
      >>> shape = {"warmup_fraction": 0.1, "final_lr_fraction": 0.5}
      >>> rate = schedules.rewarmed_cosine(100, lr=1.0, repeats=2, **shape)
      >>> [float(rate(step)) for step in (0, 5, 10, 30, 50, 55, 60, 80, 100)]
      [0.0, 0.5, 1.0, 0.75, 0.5, 0.75, 1.0, 0.75, 0.5]
    """
    warmup = steps_of("warmup_fraction", warmup_fraction, total_steps)
    if repeats < 1 or warmup * repeats >= total_steps:
        rule = "must leave some of each of config.optim.repeats"
        raise UserError(
            f"config.optim.warmup_fraction={warmup_fraction} {rule}={repeats} periods"
        )
    length, low = total_steps / repeats, lr * final_lr_fraction

    def rate(count):
        count = jnp.minimum(count, total_steps)
        period = count * repeats // total_steps
        q = count - period * length
        x = jnp.clip((q - warmup) / (length - warmup), 0, 1)
        falling = low + (lr - low) * (1 + jnp.cos(math.pi * x)) / 2
        start = jnp.where(period == 0, 0.0 if warmup else lr, low)
        rising = start + (lr - start) * q / max(warmup, 1)
        return jnp.where(q < warmup, rising, falling)

    return rate
