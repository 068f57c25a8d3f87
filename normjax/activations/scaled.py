"""Activations that keep the variance of a standard normal input."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from normjax.activations.base import ACTIVATIONS
from normjax.core.gelu import gelu
from normjax.core.moments import at_least_float32


class Scaled(nn.Module):
    """y = gain * f(x), gain = 1 / std(f(z)) for z ~ N(0, 1).

    Networks without norms keep the size of their signal by it (NFNet; Brock et al.,
    2021); the weights are then standardized (`reparam`).
    """

    gain: ClassVar[float]
    plain: ClassVar[Callable[[jax.Array], jax.Array]]

    def __call__(self, x: jax.Array) -> jax.Array:
        return (self.gain * self.plain(at_least_float32(x))).astype(x.dtype)


@ACTIVATIONS.register("scaled_relu")
class ScaledReLU(Scaled):
    """y = 1.7139588594436646 max(x, 0) (Brock et al., 2021).

    A standard normal input keeps its variance, so that networks without norms keep the
    size of their signal (NFNet); the weights are then standardized (`reparam`).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-1.0, 1.0])
      >>> print(activations.ScaledReLU().apply({}, x).round(1))
      [0.  1.7]
    """

    gain = 1.7139588594436646
    plain = staticmethod(jax.nn.relu)


@ACTIVATIONS.register("scaled_gelu")
class ScaledGELU(Scaled):
    """y = 1.7015043497085571 x Phi(x) (Brock et al., 2021).

    A standard normal input keeps its variance, so that networks without norms keep the
    size of their signal (NFNet); the weights are then standardized (`reparam`).

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> x = jax.random.normal(jax.random.key(0), (100_000,))
      >>> y = activations.ScaledGELU().apply({}, x)
      >>> abs(float(y.std()) - 1) < 0.02
      True
    """

    gain = 1.7015043497085571
    plain = staticmethod(gelu)


@ACTIVATIONS.register("scaled_silu")
class ScaledSiLU(Scaled):
    """y = 1.7881293296813965 x sigmoid(x) (Brock et al., 2021).

    A standard normal input keeps its variance, so that networks without norms keep the
    size of their signal (NFNet); the weights are then standardized (`reparam`).

    Example:
      >>> import jax
      >>> from normjax import activations
      >>> x = jax.random.normal(jax.random.key(0), (100_000,))
      >>> y = activations.ScaledSiLU().apply({}, x)
      >>> abs(float(y.std()) - 1) < 0.02
      True
    """

    gain = 1.7881293296813965
    plain = staticmethod(jax.nn.silu)
