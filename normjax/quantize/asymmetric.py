"""ZeroQ's quantizer (Cai et al., 2020)."""

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32


def asymmetric_quantize(
    x: jax.Array, low: jax.Array, high: jax.Array, bits: int
) -> jax.Array:
    """y = (clip(round(s x - z), -2^(b-1), 2^(b-1) - 1) + z) / s (Cai et al., 2020).

    s = (2^b - 1) / max(high - low, 1e-8), z = round(s low) + 2^(b-1). Rounds half to
    even; the gradient is 0.

    Args:
      x: [...].  low, high: of the range, that broadcast to x.  bits: b.

    Returns:
      [...] in the dtype of x.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> x = jnp.array([-1.0, 0.2, 0.9, 7.0])
      >>> print(quantize.asymmetric_quantize(x, 0.0, 3.0, bits=2))
      [0. 0. 1. 3.]
    """
    wide, half = at_least_float32(x), 2 ** (bits - 1)
    s = (2**bits - 1) / jnp.maximum(jnp.asarray(high) - low, 1e-8)
    z = jnp.round(s * low) + half
    return ((jnp.clip(jnp.round(s * wide - z), -half, half - 1) + z) / s).astype(
        x.dtype
    )


def quantize_outputs(kernel: jax.Array, bits: int) -> jax.Array:
    """`asymmetric_quantize` with the range of each output of a kernel.

    Args:
      kernel: [..., in, out].  bits: of the codes.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> kernel = jnp.array([[0.0, 0.0], [0.4, 4.0], [1.0, 10.0]])
      >>> print(quantize.quantize_outputs(kernel, bits=1))
      [[ 0.  0.]
       [ 0.  0.]
       [ 1. 10.]]
    """
    axes = tuple(range(kernel.ndim - 1))
    low, high = (f(kernel, axes, keepdims=True) for f in (jnp.min, jnp.max))
    return asymmetric_quantize(kernel, low, high, bits)
