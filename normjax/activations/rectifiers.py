"""Rectifiers whose kink is smooth, learned, or elsewhere in the backward pass."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations.base import ACTIVATIONS
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


def smelu(x: jax.Array, beta: float) -> jax.Array:
    """(x + beta)**2 / (4 beta) for |x| < beta, else max(x, 0) (Shamir et al., 2022).

    The derivative is continuous, clip((x + beta) / (2 beta), 0, 1). beta = 0 is ReLU.

    Args:
      x: [...].

    Returns:
      [...] in the dtype of `x`.
    """
    wide = at_least_float32(x)
    inner = jnp.square(jnp.clip(wide, -beta, beta) + beta) / (4 * beta or 1.0)
    return jnp.where(jnp.abs(wide) < beta, inner, jax.nn.relu(wide)).astype(x.dtype)


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


@helu.defjvp
def _helu_jvp(alpha, primals, tangents):
    (x,), (dx,) = primals, tangents
    return helu(x, alpha), jnp.where(x > -alpha, dx, 0)


@ACTIVATIONS.register("smelu")
class SmeLU(nn.Module):
    """A ReLU with a smooth kink, see `smelu` (Shamir et al., 2022).

    Attributes:
      beta: half the width of the smooth part, at least 0.
    """

    beta: float = 0.5

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.beta < 0:
            raise UserError(f"smelu: beta must be at least 0, got {self.beta}")
        return smelu(x, self.beta)


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


@ACTIVATIONS.register("prelu")
class PReLU(nn.Module):
    """y = x for x > 0, else slope * x (He et al., 2015). Gradient at 0 is the slope.

    Attributes:
      per_channel: a `slope` [C] for the last axis; else one, [].
      slope_init: of the slopes.  param_dtype: of the parameter.
    """

    per_channel: bool = True
    slope_init: float = 0.25
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:] if self.per_channel else ()
        init = nn.initializers.constant(self.slope_init)
        slope = self.param("slope", init, shape, self.param_dtype)
        wide = at_least_float32(x)
        slope = jnp.broadcast_to(slope.astype(wide.dtype), x.shape)
        return jnp.where(wide > 0, wide, slope * wide).astype(x.dtype)
