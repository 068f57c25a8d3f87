"""Warmup, a constant rate, and a decay at the end."""

import optax

from normjax.optim.base import SCHEDULES
from normjax.optim.schedules.shapes import (
    check_order,
    share,
    steps_of,
    tail_shape,
)


@SCHEDULES.register("wsd")
def wsd(
    total_steps: int,
    /,
    *,
    lr: float = 1e-3,
    warmup_fraction: float = 0.05,
    decay_fraction: float = 0.1,
    tail: str = "linear",
    warmup_from_final: bool = False,
    final_lr_fraction: float = 0.0,
) -> optax.Schedule:
    """Warmup-stable-decay (MiniCPM; Hu et al., 2024).

    Linear to `lr`, constant, then in the last updates down to
    `lr * final_lr_fraction` by a factor of the share x that is done: 1 - x (linear),
    (1 + cos(pi x)) / 2 (cosine), 1 - sqrt(x) (one_minus_sqrt) or
    final_lr_fraction^x (exponential).

    Args:
      total_steps: optimizer updates of the whole run.
      lr: the largest rate.  warmup_fraction: share of the updates that rise.
      decay_fraction: share of the updates at the end that fall.
      tail: "linear", "cosine", "one_minus_sqrt" or "exponential".
      warmup_from_final: it rises from `lr * final_lr_fraction`, as in the package
        transformers, not from 0.
      final_lr_fraction: of the largest rate.

    Raises:
      UserError: parts that are longer than the run, an unknown tail, or an exponential
        one to 0.

    Example:
      >>> from normjax.optim import schedules
      >>> rate = schedules.wsd(100, lr=0.5, decay_fraction=0.2)
      >>> [float(rate(step)) for step in (0, 5, 80, 90, 100)]
      [0.0, 0.5, 0.5, 0.25, 0.0]
    """
    warmup = steps_of("warmup_fraction", warmup_fraction, total_steps)
    decay = steps_of("decay_fraction", decay_fraction, total_steps)
    check_order(total_steps, warmup_fraction=warmup, decay_fraction=decay)
    tail_shape(tail, 0.0, final_lr_fraction)
    low = final_lr_fraction if warmup_from_final else 0.0

    def rate(count):
        rising = low + (1 - low) * share(count, 0, warmup) if warmup else 1.0
        x = share(count, total_steps - decay, decay)
        return lr * rising * tail_shape(tail, x, final_lr_fraction)

    return rate
