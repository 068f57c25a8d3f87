"""The activations of every library: GELU, ReLU, SiLU, ..."""

import flax.linen as nn
import jax

from normjax.activations.base import ACTIVATIONS
from normjax.core.gelu import gelu


@ACTIVATIONS.register("gelu")
class GELU(nn.Module):
    """y = x * Phi(x), Phi the normal distribution function (Hendrycks & Gimpel, 2016).

    Attributes:
      approximate: the tanh form instead of the exact one.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-1.0, 0.0, 1.0])
      >>> y = activations.GELU(approximate=True).apply({}, x)
      >>> bool(jnp.allclose(y, jax.nn.gelu(x, approximate=True)))
      True
    """

    approximate: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x) if self.approximate else gelu(x)


@ACTIVATIONS.register("relu")
class ReLU(nn.Module):
    """y = max(x, 0); gradient 0 at 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.ReLU().apply({}, jnp.array([-1.0, 2.0])))
      [0. 2.]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)


@ACTIVATIONS.register("relu6")
class ReLU6(nn.Module):
    """y = min(max(x, 0), 6); gradient 0 at 0 and 6 (Krizhevsky, 2010).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.ReLU6().apply({}, jnp.array([-1.0, 2.0, 9.0])))
      [0. 2. 6.]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu6(x)


@ACTIVATIONS.register("leaky_relu")
class LeakyReLU(nn.Module):
    """y = x for x >= 0, else slope * x (Maas et al., 2013).

    Attributes:
      slope: below 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.LeakyReLU(slope=0.5).apply({}, jnp.array([-2.0, 2.0])))
      [-1.  2.]
    """

    slope: float = 0.01

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.leaky_relu(x, self.slope)


@ACTIVATIONS.register("silu")
class SiLU(nn.Module):
    """y = x * sigmoid(x) (Hendrycks & Gimpel, 2016; Ramachandran et al., 2017).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.SiLU().apply({}, jnp.array([0.0, 40.0])))
      [ 0. 40.]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)


@ACTIVATIONS.register("tanh")
class Tanh(nn.Module):
    """y = tanh(x).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.Tanh().apply({}, jnp.array([-40.0, 0.0, 40.0])))
      [-1.  0.  1.]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.numpy.tanh(x)


@ACTIVATIONS.register("sigmoid")
class Sigmoid(nn.Module):
    """y = 1 / (1 + exp(-x)).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.Sigmoid().apply({}, jnp.array([0.0, 40.0])))
      [0.5 1. ]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(x)


@ACTIVATIONS.register("identity")
class Identity(nn.Module):
    """y = x.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.Identity().apply({}, jnp.array([-1.0, 2.0])))
      [-1.  2.]
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return x
