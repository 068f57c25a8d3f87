"""SmeLU: a ReLU with a smooth bend."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.activations.base import ACTIVATIONS
from normjax.activations.helu import helu
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


def smelu(x: jax.Array, beta: float) -> jax.Array:
    """(x + beta)**2 / (4 beta) for |x| < beta, else max(x, 0) (Shamir et al., 2022).

    The derivative is continuous, clip((x + beta) / (2 beta), 0, 1). beta = 0 is ReLU.

    Args:
      x: [...].  beta: half the width of the bend, at least 0.

    Returns:
      [...] in the dtype of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-4.0, -2.0, 0.0, 2.0, 4.0])
      >>> print(activations.smelu(x, 2.0))
      [0.  0.  0.5 2.  4. ]
    """
    wide = at_least_float32(x)
    inner = jnp.square(jnp.clip(wide, -beta, beta) + beta) / (4 * beta or 1.0)
    return jnp.where(jnp.abs(wide) < beta, inner, jax.nn.relu(wide)).astype(x.dtype)


@helu.defjvp
def _helu_jvp(alpha, primals, tangents):
    (x,), (dx,) = primals, tangents
    return helu(x, alpha), jnp.where(x > -alpha, dx, 0)


@ACTIVATIONS.register("smelu")
class SmeLU(nn.Module):
    """y = (x + beta)**2 / (4 beta) for |x| < beta, else ReLU (Shamir et al., 2022).

    Attributes:
      beta: half the width of the smooth part, at least 0.

    Raises:
      UserError: a negative `beta`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-2.0, 0.0, 2.0])
      >>> print(activations.SmeLU(beta=1.0).apply({}, x))
      [0.   0.25 2.  ]
    """

    beta: float = 0.5

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.beta < 0:
            raise UserError(f"smelu: beta must be at least 0, got {self.beta}")
        return smelu(x, self.beta)
