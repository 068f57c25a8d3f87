"""A power of the tokens that were seen."""

import jax.numpy as jnp
import optax

from normjax.core.errors import UserError
from normjax.optim.base import SCHEDULES
from normjax.optim.schedules.shapes import share, steps_of, with_tail


@SCHEDULES.register("power")
def power(
    total_steps: int,
    /,
    *,
    lr: float = 1e-3,
    warmup_fraction: float = 0.05,
    amplitude: float = 4.0,
    exponent: float = -0.51,
    batch_size: int = 0,
    sequence_length: int = 1,
    decay_fraction: float = 0.1,
    tail: str = "exponential",
    tail_fraction: float = 0.1,
) -> optax.Schedule:
    """min(lr, amplitude batch n^exponent) of n tokens seen (Shen et al., 2024).

    Linear from 0 in the warmup; from the rate at the last part of the run down to
    `tail_fraction` of it in that part. The rate does not know how long the run is,
    but for that.

    Args:
      total_steps: optimizer updates of the whole run.
      lr: the largest rate; 0.02 in the paper.
      warmup_fraction: share of the updates that rise.
      amplitude, exponent: of the power.
      batch_size: sequences of an update; it has to be given.
      sequence_length: tokens of a sequence.
      decay_fraction: share of the updates at the end that fall; 0: none.
      tail: "linear", "cosine", "one_minus_sqrt" or "exponential".
      tail_fraction: where the fall ends, of the rate where it begins.

    Raises:
      UserError: no batch size, parts that are longer than the run, or an unknown tail.

    Example:
      >>> from normjax.optim import schedules
      >>> sizes = {"batch_size": 8, "sequence_length": 128, "decay_fraction": 0.0}
      >>> rate = schedules.power(1000, lr=0.1, exponent=-0.5, **sizes)
      >>> [round(float(rate(step)), 4) for step in (0, 25, 50, 1000)]
      [0.0, 0.05, 0.1, 0.0316]
    """
    if batch_size < 1 or sequence_length < 1:
        raise UserError(
            "config.optim.schedule 'power' needs config.optim.batch_size, sequences of "
            "an update, and config.optim.sequence_length, both at least 1"
        )
    warmup = steps_of("warmup_fraction", warmup_fraction, total_steps)
    decay = steps_of("decay_fraction", decay_fraction, total_steps)

    def rate(count):
        steps = jnp.asarray(count, jnp.result_type(float))
        tokens = jnp.maximum(steps, max(warmup, 1)) * batch_size * sequence_length
        falling = jnp.minimum(lr, amplitude * batch_size * tokens**exponent)
        return falling * (share(count, 0, warmup) if warmup else 1.0)

    return with_tail(rate, total_steps, decay_steps=decay, tail=tail, end=tail_fraction)
