"""Norms and their readers rewritten, so that one scale fits all channels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.moments import at_least_float32
from normjax.quantize.uniform import UniformQuantizer


class Rescaled(NamedTuple):
    """A norm and the linear layer behind it, that compute what they did.

    Attributes:
      scale, bias: of the norm, [C].
      kernel, linear_bias: of its reader, [..., C, F] and [F].
      quantizer: of what the norm gives now; one scale for all channels.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> channels = quantize.UniformQuantizer(jnp.ones(2), jnp.zeros(2), bits=4)
      >>> same = quantize.rescale_norm(
      ...     jnp.ones(2), jnp.zeros(2), jnp.ones((2, 3)), None, channels
      ... )
      >>> same.quantizer.scale.shape, same.linear_bias.shape
      ((), (3,))
    """

    scale: jax.Array
    bias: jax.Array
    kernel: jax.Array
    linear_bias: jax.Array
    quantizer: UniformQuantizer


def rescale_norm(
    scale: jax.Array,
    bias: jax.Array,
    kernel: jax.Array,
    linear_bias: jax.Array | None,
    quantizer: UniformQuantizer,
    *,
    round_zero_point: bool = False,
) -> Rescaled:
    """RepQ's scale reparameterization of a norm g, t and its reader W, c.

    With s, z by channel, S = mean(s), Z = mean(z), r = s / S, u = S (z - Z):

        g' = g / r    t' = t / r + u    W' = diag(r) W    c' = c - u W'

    is the same function (Li et al., 2023). What the norm gives has under (S, Z) the
    codes that it had under (s, z), where Z is rounded; else they are up to half a step
    away. The weights have other ranges then: calibrate theirs anew.

    Args:
      scale, bias: g and t, [C].
      kernel: W, [C, F].  linear_bias: c, [F], or None, which becomes one.
      quantizer: of what the norm gives, one scale and zero point a channel.
      round_zero_point: Z as an integer, as integer arithmetic needs it. The authors
        leave the mean as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> scales, zeros = jnp.array([1.0, 3.0]), jnp.array([0.0, 4.0])
      >>> channels = quantize.UniformQuantizer(scales, zeros, bits=4)
      >>> new = quantize.rescale_norm(
      ...     jnp.ones(2), jnp.zeros(2), jnp.ones((2, 1)), None, channels
      ... )
      >>> print(new.scale.round(2), new.bias, new.kernel.ravel(), new.linear_bias)
      [2. 0.67] [-4. 4.] [0.5 1.5] [-4.]
    """
    s, z = (
        at_least_float32(v).reshape(-1) for v in (quantizer.scale, quantizer.zero_point)
    )
    one, zero = jnp.mean(s), jnp.mean(z)
    zero = jnp.round(zero) if round_zero_point else zero
    ratio, shift = s / one, one * (z - zero)
    new = ratio[:, None] * at_least_float32(kernel)
    moved = einsum("i,io->o", shift, new)
    new_bias = -moved if linear_bias is None else linear_bias - moved
    return Rescaled(
        (scale / ratio).astype(scale.dtype),
        (bias / ratio + shift).astype(bias.dtype),
        new.astype(kernel.dtype),
        new_bias.astype(kernel.dtype),
        UniformQuantizer(one, zero, quantizer.bits),
    )
