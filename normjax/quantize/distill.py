"""Images with the statistics that BatchNorms remember (ZeroQ; Cai et al., 2020)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.core.moments import at_least_float32

EPSILON = 1e-6  # of every standard deviation, whatever the norms have
BETTER = 1e-4  # relative; less is no improvement, as PyTorch counts it


def statistics_distance(x: jax.Array, mean: Any, var: Any) -> jax.Array:
    """(1 / B) sum_ic (m_ic - mean_c)^2 + (d_ic - sqrt(var_c + 1e-6))^2.

    m_ic and d_ic^2 - 1e-6 are mean and unbiased variance of channel c over the
    positions of image i alone, as in the authors' code; their text has the batch.

    Args:
      x: [B, ..., C], what a BatchNorm reads, of at least two positions.
      mean, var: [C], its running statistics. Of the images themselves 0 and 1 - 1e-6.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> x = jnp.array([[[0.0], [2.0]]])  # mean 1, variance 2
      >>> float(quantize.statistics_distance(x, jnp.array([3.0]), jnp.array([2.0])))
      4.0
    """
    wide, axes = at_least_float32(x), tuple(range(1, x.ndim - 1))
    own, spread = jnp.mean(wide, axes), jnp.var(wide, axes, ddof=1)
    mean, var = (jnp.reshape(v, (1, -1)) for v in (mean, var))
    gaps = own - mean, jnp.sqrt(spread + EPSILON) - jnp.sqrt(var + EPSILON)
    return jnp.sum(jnp.square(jnp.stack(gaps))) / len(x)


class _Search(NamedTuple):
    x: jax.Array
    adam: Any
    rate: jax.Array
    least: jax.Array
    stalled: jax.Array


def distill_images(
    loss: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    steps: int = 500,
    rate: float = 0.5,
    least_rate: float = 1e-4,
    patience: int = 100,
) -> tuple[jax.Array, jax.Array]:
    """x after `steps` of Adam on a loss, as ZeroQ makes its images (Cai et al., 2020).

    The learning rate falls to a tenth once the loss has been no better for more than
    `patience` steps. One compiled loop.

    Args:
      loss: of x, a scalar: sums of `statistics_distance`, of the images as well.
      x: [B, ...], the start; see `first_images`.
      steps: updates.  rate, least_rate: first and last learning rate.
      patience: see above.

    Returns:
      (x, losses before each update [steps]).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> x, losses = quantize.distill_images(
      ...     lambda x: jnp.sum((x - 3) ** 2), jnp.zeros((1, 2)), steps=50
      ... )
      >>> losses.shape, bool(losses[-1] < 0.1 * losses[0])
      ((50,), True)
    """
    adam = optax.scale_by_adam()

    def step(now: _Search, _):
        value, gradient = jax.value_and_grad(loss)(now.x)
        update: Any
        update, state = adam.update(gradient, now.adam)
        x = now.x - now.rate * update
        better = value < now.least * (1 - BETTER)
        stalled = jnp.where(better, 0, now.stalled + 1)
        tired = stalled > patience
        slower = jnp.maximum(now.rate / 10, least_rate)
        new_rate = jnp.where(tired, slower, now.rate)
        least = jnp.where(better, value, now.least)
        return _Search(x, state, new_rate, least, jnp.where(tired, 0, stalled)), value

    dtype = x.dtype
    start = _Search(
        x,
        adam.init(x),
        jnp.asarray(rate, dtype),
        jnp.asarray(jnp.inf, dtype),
        jnp.asarray(0),
    )
    last, losses = jax.lax.scan(step, start, length=steps)
    return last.x, losses


def first_images(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform integers 0..254, less 127.5, over 5418.75: where ZeroQ starts.

    5418.75 is their variance, so the images have the standard deviation 0.0136.

    Args:
      key: random key.  shape: [B, H, W, C].

    Example:
      >>> import jax
      >>> from normjax import quantize
      >>> x = quantize.first_images(jax.random.key(0), (2, 4, 4, 3))
      >>> x.shape, bool(abs(x).max() < 0.024)
      ((2, 4, 4, 3), True)
    """
    return (jax.random.randint(key, shape, 0, 255) - 127.5) / 5418.75
