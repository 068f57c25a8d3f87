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
      x: [...].

    Returns:
      [...] in the dtype of `x`.
    """
    del alpha
    return jnp.maximum(x, 0)


@ACTIVATIONS.register("helu")
class HeLU(nn.Module):
    """y = max(x, 0) whose gradient passes where x > -alpha (Kimhi et al., 2024).

    Attributes:
      alpha: at least 0; 0 is ReLU.
    """

    alpha: float = 0.05

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.alpha < 0:
            raise UserError(f"helu: alpha must be at least 0, got {self.alpha}")
        return helu(x, self.alpha)
