"""Pieces that schedules are made of: where the warmup ends, how a tail falls."""

import math

import jax.numpy as jnp
import optax

from normjax.core.errors import UserError, one_of

TAILS = ("linear", "cosine", "one_minus_sqrt", "exponential")


def steps_of(name: str, fraction: float, total_steps: int) -> int:
    """The updates that a share of the run is.

    Raises:
      UserError: a share outside [0, 1).
    """
    steps = round(fraction * total_steps)
    if not 0 <= steps < total_steps:
        rule = f"must leave some of the run: 0 <= {name} < 1"
        raise UserError(f"config.optim.{name}={fraction} {rule}")
    return steps


def check_order(total_steps: int, **steps: int) -> None:
    """Raise UserError where the named parts are longer than the run together."""
    if sum(steps.values()) > total_steps:
        names = " + ".join(f"config.optim.{name}" for name in steps)
        raise UserError(f"{names} must be at most 1: they are parts of one run")


def tail_shape(tail: str, x, end: float):
    """The factor of the rate after share x in [0, 1] of a decay from 1 to `end`.

    linear: 1 - x; cosine: (1 + cos(pi x)) / 2; one_minus_sqrt: 1 - sqrt(x), each from 1
    to `end`; exponential: end^x.

    Raises:
      UserError: an unknown tail, or an exponential one to 0.
    """
    if tail not in TAILS:
        raise UserError(one_of("decay of config.optim", tail, TAILS))
    if tail == "exponential":
        if end <= 0:
            raise UserError(
                f"config.optim: an exponential decay cannot end at {end} of the rate"
            )
        return jnp.exp(x * math.log(end))
    falls = {
        "linear": lambda: 1 - x,
        "cosine": lambda: (1 + jnp.cos(math.pi * x)) / 2,
        "one_minus_sqrt": lambda: 1 - jnp.sqrt(x),
    }
    return end + (1 - end) * falls[tail]()


def share(count, start: float, steps: float):
    """How much of `steps` from `start` is done at `count`, in [0, 1]."""
    counted = jnp.asarray(count, jnp.result_type(float))
    return jnp.clip((counted - start) / max(steps, 1), 0, 1)


def with_tail(
    schedule: optax.Schedule,
    total_steps: int,
    *,
    decay_steps: int,
    tail: str = "linear",
    end: float = 0.0,
) -> optax.Schedule:
    """`schedule`, then from its rate there down to `end` of it in the last steps.

    Args:
      schedule: the rate by update.  total_steps: updates of the run.
      decay_steps: the last of them.  tail: "linear", "cosine", "one_minus_sqrt" or
        "exponential".  end: of the rate where it begins.

    Raises:
      UserError: an unknown tail, one of more steps than the run, or an exponential one
        to 0.

    Example:
      >>> from normjax.optim import with_tail
      >>> rate = with_tail(lambda step: 0.5, 100, decay_steps=20, end=0.2)
      >>> [float(rate(step)) for step in (0, 80, 90, 100)]
      [0.5, 0.5, 0.3, 0.1]
    """
    if not 0 <= decay_steps <= total_steps:
        raise UserError(
            f"a decay of {decay_steps} steps does not fit a run of {total_steps}"
        )
    tail_shape(tail, 0.0, end)
    begins = total_steps - decay_steps

    def rate(count):
        before = schedule(jnp.minimum(count, begins))
        return before * tail_shape(tail, share(count, begins, decay_steps), end)

    return rate if decay_steps else schedule
