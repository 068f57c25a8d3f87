"""HeLU: a ReLU whose gradient bends later."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.activations.base import ACTIVATIONS
from normjax.core.errors import UserError


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def helu(x: jax.Array, alpha: float) -> jax.Array:
    """max(x, 0) whose gradient passes where x > -alpha (Kimhi et al., 2024).

    So the gradient is not the derivative: it reaches inputs in (-alpha, 0] as well.

    Args:
      x: [...].  alpha: at least 0, not an array.

    Returns:
      [...] in the dtype of `x`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([-2.0, -0.25, 3.0])
      >>> print(activations.helu(x, 0.5))
      [0. 0. 3.]
      >>> print(jax.grad(lambda x: activations.helu(x, 0.5).sum())(x))
      [0. 1. 1.]
    """
    del alpha
    return jnp.maximum(x, 0)


@ACTIVATIONS.register("helu")
class HeLU(nn.Module):
    """y = max(x, 0) whose gradient passes where x > -alpha (Kimhi et al., 2024).

    Attributes:
      alpha: at least 0; 0 is ReLU.

    Raises:
      UserError: a negative `alpha`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.HeLU(alpha=0.1).apply({}, jnp.array([-1.0, 2.0])))
      [0. 2.]
    """

    alpha: float = 0.05

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.alpha < 0:
            raise UserError(f"helu: alpha must be at least 0, got {self.alpha}")
        return helu(x, self.alpha)
