"""Uniform quantizers with ranges of quantiles (RepQ-ViT; Li et al., 2023)."""

import flax.struct
import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32

QUANTILES = (0.999, 0.9999, 0.99999)


@flax.struct.dataclass
class UniformQuantizer:
    """y = (clip(round(x / s) + z, 0, 2^bits - 1) - z) s.

    Rounds half to even; the gradient is 0.

    Attributes:
      scale, zero_point: s and z, that broadcast to x. z may be no integer, see
        `rescale_norm`.
      bits: of the codes.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> scale, zero = jnp.array(0.5), jnp.array(2.0)
      >>> quantizer = quantize.UniformQuantizer(scale, zero, bits=2)
      >>> print(quantizer(jnp.array([-9.0, 0.1, 0.3, 9.0])))
      [-1. 0. 0.5 0.5]
    """

    scale: jax.Array
    zero_point: jax.Array
    bits: int = flax.struct.field(pytree_node=False)

    def codes(self, x: jax.Array) -> jax.Array:
        """Codes 0..2^bits - 1, as floating numbers."""
        code = jnp.round(at_least_float32(x) / self.scale) + self.zero_point
        return jnp.clip(code, 0, 2**self.bits - 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [...] -> same, in its dtype."""
        return ((self.codes(x) - self.zero_point) * self.scale).astype(x.dtype)


def calibrate_uniform(
    x: jax.Array, bits: int, axis: int | None = None
) -> UniformQuantizer:
    """The quantizer of least squared error on x (RepQ-ViT; Li et al., 2023).

    For q of 0.999, 0.9999, 0.99999 the range goes from quantile 1 - q to quantile q,
    s = (hi - lo) / (2^bits - 1), z = round(-lo / s); the best is kept, the first of
    equals. The least and largest entries are not always inside.

    Args:
      x: [...], calibration data or weights.  bits: 1 or more.
      axis: that has a quantizer of its own for each index: -1 of activations [B, N, C]
        and of kernels [..., in, out]; None: one for all.

    Returns:
      A quantizer whose arrays have the rank of x where there is an axis, else scalars.

    Raises:
      UserError: bits below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> x = jnp.linspace(-1.0, 1.0, 9)
      >>> quantizer = quantize.calibrate_uniform(x, bits=8)
      >>> bool(abs(quantizer(x) - x).max() < quantizer.scale)
      True
    """
    if bits < 1:
        raise UserError(f"bits must be at least 1, got {bits}")
    wide, levels = at_least_float32(x), 2**bits - 1
    rest = tuple(i for i in range(x.ndim) if axis is None or i != axis % x.ndim)

    def candidate(q):
        low, high = (jnp.quantile(wide, p, rest, keepdims=True) for p in (1 - q, q))
        span = jnp.where(high > low, high - low, 1)  # a constant has no range
        scale = span / levels
        return scale, jnp.round(-low / scale)

    found = []
    for scale, zero in map(candidate, QUANTILES):
        y = (jnp.clip(jnp.round(wide / scale) + zero, 0, levels) - zero) * scale
        error = jnp.mean(jnp.square(y - wide), rest, keepdims=True)
        found.append((scale, zero, error))
    scales, zeros, errors = map(jnp.stack, zip(*found, strict=True))
    first = jnp.argmin(errors, 0, keepdims=True)
    best = [jnp.take_along_axis(v, first, 0)[0] for v in (scales, zeros)]
    shape = () if axis is None else best[0].shape
    return UniformQuantizer(best[0].reshape(shape), best[1].reshape(shape), bits)
