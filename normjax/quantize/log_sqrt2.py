"""The quantizer of attention: powers of the root of 2 (RepQ-ViT; Li et al., 2023)."""

import flax.struct
import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.quantize.uniform import QUANTILES


@flax.struct.dataclass
class LogSqrt2Quantizer:
    """y = d 2^(-q / 2), q = round(-2 log2(a / d)), for probabilities a >= 0.

    What lies below the smallest level (q of 2^bits or more, a = 0) becomes 0, what lies
    above d becomes d. The gradient is 0. In integers it is a shift by ceil(q / 2) and
    one of two scales, d or sqrt(2) d.

    Attributes:
      scale: d.  bits: of q.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> quantizer = quantize.LogSqrt2Quantizer(jnp.array(1.0), bits=3)
      >>> print(quantizer(jnp.array([0.0, 0.01, 0.26, 0.7, 2.0])))
      [0. 0. 0.25 0.70710677 1.]
    """

    scale: jax.Array
    bits: int = flax.struct.field(pytree_node=False)

    def __call__(self, a: jax.Array) -> jax.Array:
        """a: [...] -> same, in its dtype."""
        code = jnp.round(-2 * jnp.log2(at_least_float32(a) / self.scale))
        levels = 2**self.bits
        value = self.scale * 2 ** (-jnp.clip(code, 0, levels - 1) / 2)
        return jnp.where(code >= levels, 0, value).astype(a.dtype)


def calibrate_log_sqrt2(a: jax.Array, bits: int) -> LogSqrt2Quantizer:
    """The quantizer whose d is the quantile of least squared error.

    One of the 0.999, 0.9999 and 0.99999 quantiles of a, the first of equals.

    Args:
      a: [...], attention behind its softmax.  bits: 1 or more.

    Raises:
      UserError: bits below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import quantize
      >>> attention = jnp.array([0.5, 0.25, 0.25])
      >>> quantizer = quantize.calibrate_log_sqrt2(attention, bits=4)
      >>> print(quantizer(attention).round(2))
      [0.5 0.25 0.25]
    """
    if bits < 1:
        raise UserError(f"bits must be at least 1, got {bits}")
    wide = at_least_float32(a)
    scales = jnp.stack([jnp.quantile(wide, q) for q in QUANTILES])

    def error(scale):
        return jnp.mean(jnp.square(LogSqrt2Quantizer(scale, bits)(wide) - wide))

    errors = jnp.stack([error(scale) for scale in scales])
    return LogSqrt2Quantizer(scales[jnp.argmin(errors)], bits)
