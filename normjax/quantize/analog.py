"""Rounding, noise and range of analog hardware, with gradients that pass through.

After AnalogVNN, and Learning in Quantized Noisy Environments (Shah & Youngblood, 2024).
"""

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError


def _through(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value`, with the gradient of x."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))


def clamp(x: jax.Array) -> jax.Array:
    """x clipped to [-1, 1]; the gradient is 1 inside and on the edges.

    Args:
      x: [...].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> print(quantize.clamp(jnp.array([-3.0, 0.5, 1.0])))
      [-1. 0.5 1.]
    """
    return jnp.where(jnp.abs(x) <= 1, x, jnp.sign(x))


def reduce_precision(
    x: jax.Array,
    precision: int,
    *,
    divide: float = 0.5,
    uniform: jax.Array | None = None,
) -> jax.Array:
    """sign(x) ceil(|P x| - divide) / P: P levels a unit, ties toward 0.

    With `uniform` at random instead: floor(|P x|) where u <= 1 - its fraction, else
    ceil. The gradient passes straight through.

    Args:
      x: [...].  precision: P; 2^bits - 1 of so many bits.
      divide: from which fraction on it is rounded up, in [0, 1].
      uniform: u, [...], random numbers in [0, 1); None rounds to the nearest.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> x = jnp.array([-0.3, 0.5, 0.8])
      >>> print(quantize.reduce_precision(x, 1))  # a tie goes to 0
      [-0. 0. 1.]
    """
    size = jnp.abs(x * precision)
    lower = jnp.floor(size)
    if uniform is None:
        level = jnp.maximum(lower, jnp.ceil(size - divide))
    else:
        level = jnp.where(uniform <= 1 - (size - lower), lower, jnp.ceil(size))
    return _through(jnp.sign(x) * level / precision, x)


def noise_std(precision: int, leakage: float) -> float:
    """1 / (2 P sqrt(2) erfinv(1 - leakage)): the noise that leaves its level so often.

    Args:
      precision: P, levels a unit.
      leakage: probability that noise alone exceeds half a level, in (0, 1).

    Raises:
      UserError: a leakage outside.

    Example:
      >>> from normjax import quantize
      >>> round(quantize.noise_std(1, 0.3173), 3)  # half a level is one deviation
      0.5
    """
    if not 0 < leakage < 1:
        raise UserError(f"leakage must lie in (0, 1), got {leakage}")
    from statistics import NormalDist

    return 0.5 / precision / NormalDist().inv_cdf(1 - leakage / 2)


def add_noise(x: jax.Array, gaussian: jax.Array, std: float) -> jax.Array:
    """x + std * gaussian.

    Args:
      x: [...].  gaussian: [...] of variance 1.  std: of the noise, see `noise_std`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> print(quantize.add_noise(jnp.array([1.0]), jnp.array([-2.0]), 0.25))
      [0.5]
    """
    return x + std * gaussian


def analog_input(
    x: jax.Array, gaussian: jax.Array, precision: int, std: float, divide: float = 0.5
) -> jax.Array:
    """Digital to analog, in front of a layer and for weights: clamp, reduce, noise.

    Args:
      x: [...].  gaussian: [...] of variance 1.
      precision: levels a unit.  std: of the noise.  divide: as of `reduce_precision`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> print(quantize.analog_input(jnp.array([3.0]), jnp.array([1.0]), 7, 0.25))
      [1.25]
    """
    return add_noise(
        reduce_precision(clamp(x), precision, divide=divide), gaussian, std
    )


def analog_output(
    x: jax.Array, gaussian: jax.Array, precision: int, std: float, divide: float = 0.5
) -> jax.Array:
    """Analog to digital, between layer and activation: noise, clamp, reduce.

    Args:
      x: [...].  gaussian: [...] of variance 1.
      precision: levels a unit.  std: of the noise.  divide: as of `reduce_precision`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> print(quantize.analog_output(jnp.array([3.0]), jnp.array([1.0]), 7, 0.25))
      [1.]
    """
    return reduce_precision(
        clamp(add_noise(x, gaussian, std)), precision, divide=divide
    )
