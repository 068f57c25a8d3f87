"""A rate that stays constant for as long as there is data."""

import math

import jax.numpy as jnp
import optax

from normjax.core.errors import UserError, one_of
from normjax.optim.base import SCHEDULES
from normjax.optim.schedules.shapes import check_order, share, steps_of

COOLDOWNS = ("cosine", "inverse_sqrt", "linear")


def infinite_by_steps(
    *,
    peak: float,
    constant: float,
    end: float,
    warmup_steps: float,
    cooldown_steps: float,
    annealing_from: float,
    total_steps: float,
    cooldown: str,
    timescale: float,
) -> optax.Schedule:
    """The schedule `infinite` of rates and of steps."""

    def h(z):
        return 1 / jnp.sqrt(1 + timescale * z) - 1

    def rate(count):
        x = share(count, warmup_steps, cooldown_steps)
        fallen = {
            "cosine": lambda: (1 - jnp.cos(math.pi * x)) / 2,
            "inverse_sqrt": lambda: h(x) / h(1.0),
            "linear": lambda: x,
        }[cooldown]()
        rising = share(count, 0, warmup_steps) if warmup_steps else 1.0
        y = share(count, annealing_from, total_steps - annealing_from)
        y = y if total_steps > annealing_from else 0.0
        fading = jnp.exp(y * math.log(end / constant))
        return (peak + (constant - peak) * fallen) * rising * fading

    return rate


def _check(cooldown: str, constant_lr_fraction: float, tail_fraction: float) -> None:
    if cooldown not in COOLDOWNS:
        raise UserError(one_of("config.optim.cooldown", cooldown, COOLDOWNS))
    for name, value in (
        ("constant_lr_fraction", constant_lr_fraction),
        ("tail_fraction", tail_fraction),
    ):
        if not 0 < value <= 1:
            raise UserError(f"config.optim.{name}={value} must lie in (0, 1]")


@SCHEDULES.register("infinite")
def infinite(
    total_steps: int,
    /,
    *,
    lr: float = 1e-3,
    warmup_fraction: float = 0.05,
    cooldown_fraction: float = 0.6,
    annealing_fraction: float = 0.1,
    constant_lr_fraction: float = 0.55,
    cooldown: str = "cosine",
    timescale: float = 10.0,
    tail_fraction: float = 0.1,
) -> optax.Schedule:
    """Warmup, cooldown, a constant rate, and an annealing (Ibrahim et al., 2024).

    Linear from 0 to `lr`; down to c = `lr * constant_lr_fraction` by the share x of the
    cooldown: c + (lr - c) (1 + cos(pi x)) / 2 (cosine), lr + (c - lr) h(x) / h(1) with
    h(z) = 1 / sqrt(1 + timescale z) - 1 (inverse_sqrt), or a line; then c; at the end
    c tail_fraction^y by the share y of the annealing.

    Args:
      total_steps: optimizer updates of the whole run.
      lr: the largest rate.  warmup_fraction: share of the updates that rise.
      cooldown_fraction: share of the updates of the cooldown, behind the warmup.
      annealing_fraction: share of the updates at the end that fall; 0: none.
      constant_lr_fraction: the constant rate, of the largest.
      cooldown: "cosine", "inverse_sqrt" or "linear".  timescale: of "inverse_sqrt".
      tail_fraction: where the annealing ends, of the constant rate.

    Raises:
      UserError: parts that are longer than the run, or an unknown cooldown.

    Example:
      >>> from normjax.optim import schedules
      >>> shape = {"constant_lr_fraction": 0.5, "tail_fraction": 0.25}
      >>> rate = schedules.infinite(100, lr=1.0, **shape)
      >>> [float(rate(step)) for step in (0, 5, 35, 65, 90, 95, 100)]
      [0.0, 1.0, 0.75, 0.5, 0.5, 0.25, 0.125]
    """
    _check(cooldown, constant_lr_fraction, tail_fraction)
    warmup = steps_of("warmup_fraction", warmup_fraction, total_steps)
    cooling = steps_of("cooldown_fraction", cooldown_fraction, total_steps)
    annealing = steps_of("annealing_fraction", annealing_fraction, total_steps)
    check_order(
        total_steps,
        warmup_fraction=warmup,
        cooldown_fraction=cooling,
        annealing_fraction=annealing,
    )
    return infinite_by_steps(
        peak=lr,
        constant=lr * constant_lr_fraction,
        end=lr * constant_lr_fraction * tail_fraction,
        warmup_steps=warmup,
        cooldown_steps=cooling,
        annealing_from=total_steps - annealing,
        total_steps=total_steps,
        cooldown=cooldown,
        timescale=timescale,
    )
