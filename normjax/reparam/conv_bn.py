"""A convolution and its frozen BatchNorm as one convolution, rebuilt every step."""

import jax

from normjax.core.moments import at_least_float32
from normjax.reparam.base import per_unit


def tuned_conv_bn(
    kernel: jax.Array,
    bias: jax.Array | None,
    scale: jax.Array,
    shift: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array]:
    """Kernel k W and bias (c - mean) k + shift, k = scale / sqrt(var + epsilon).

    The tune mode of ConvBN blocks (You et al., 2024): the gradients of kernel, bias,
    scale and shift are those of the convolution followed by a BatchNorm at evaluation,
    and the output of the convolution need not be kept for them.

    Args:
      kernel: W, [..., in, out].  bias: c, [out], or None for 0.
      scale, shift, mean, var: [out], of the norm; the last two are its statistics.
      epsilon: added to the variance.

    Returns:
      (kernel [..., in, out], bias [out]) in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel, bias = reparam.tuned_conv_bn(
      ...     jnp.ones((3, 1)),
      ...     None,
      ...     scale=jnp.array([2.0]),
      ...     shift=jnp.array([5.0]),
      ...     mean=jnp.array([1.0]),
      ...     var=jnp.array([4.0]),
      ...     epsilon=0.0,
      ... )
      >>> print(kernel.ravel(), bias)  # k = 2 / sqrt(4)
      [1. 1. 1.] [4.]
    """
    factor = scale * jax.lax.rsqrt(at_least_float32(var) + epsilon)
    centre = -mean if bias is None else bias - mean
    return at_least_float32(kernel) * per_unit(factor, kernel), centre * factor + shift
