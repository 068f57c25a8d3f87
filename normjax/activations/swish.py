"""Swish: x * sigmoid(beta x) with a learned beta."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations.base import ACTIVATIONS
from normjax.core.moments import at_least_float32


@ACTIVATIONS.register("swish")
class Swish(nn.Module):
    """y = x * sigmoid(beta * x) (Ramachandran et al., 2017).

    Attributes:
      beta: at first, or always where it is not `trainable`.
      trainable: learn `beta`.  per_channel: one for each of the last axis.
      param_dtype: of the parameter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> swish = activations.Swish(beta=2.0, per_channel=True)
      >>> x = jnp.array([[0.0, 40.0]])
      >>> y, variables = swish.init_with_output(jax.random.key(0), x)
      >>> print(y, variables["params"]["beta"])
      [[ 0. 40.]] [2. 2.]
    """

    beta: float = 1.0
    trainable: bool = True
    per_channel: bool = False
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, beta = at_least_float32(x), jnp.asarray(self.beta)
        if self.trainable:
            shape = x.shape[-1:] if self.per_channel else ()
            init = nn.initializers.constant(self.beta)
            beta = self.param("beta", init, shape, self.param_dtype)
        beta = jnp.broadcast_to(beta.astype(wide.dtype), x.shape)
        return (wide * jax.nn.sigmoid(beta * wide)).astype(x.dtype)
