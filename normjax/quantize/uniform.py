"""Uniform quantizers with ranges of quantiles (RepQ-ViT; Li et al., 2023)."""

from functools import partial
from typing import NamedTuple

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
      bits: of the codes; a number, or a traced int32 scalar.

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
    bits: int | jax.Array = flax.struct.field(pytree_node=False)

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
    return calibrate_within(x, quantile_ranges(x, axis), bits)


class Ranges(NamedTuple):
    """From which to which quantile, of each of `QUANTILES`; no matter of bits.

    Attributes:
      low, high: [3], or [3, ...] that broadcasts to the data behind it.
    """

    low: jax.Array
    high: jax.Array


@partial(jax.jit, static_argnames="axis")
def quantile_ranges(x: jax.Array, axis: int | None = None) -> Ranges:
    """The ranges that `calibrate_uniform` chooses from; sorts x once.

    Args:
      x: [...].  axis: as there.
    """
    rest = tuple(i for i in range(x.ndim) if axis is None or i != axis % x.ndim)
    both = jnp.asarray([*(1 - q for q in QUANTILES), *QUANTILES])
    found = jnp.quantile(at_least_float32(x), both, rest, keepdims=axis is not None)
    return Ranges(found[: len(QUANTILES)], found[len(QUANTILES) :])


def calibrate_within(x: jax.Array, ranges: Ranges, bits: int) -> UniformQuantizer:
    """`calibrate_uniform` with the ranges of `quantile_ranges`.

    Raises:
      UserError: bits below 1.
    """
    if bits < 1:
        raise UserError(f"bits must be at least 1, got {bits}")
    scale, zero_point = _best(x, ranges, 2**bits - 1)
    return UniformQuantizer(scale, zero_point, bits)


@jax.jit
def _best(x: jax.Array, ranges: Ranges, levels: int) -> tuple[jax.Array, jax.Array]:
    """(s, z) of the range of least squared error; one program for all bits."""
    wide, low, high = at_least_float32(x), *ranges
    span = jnp.where(high > low, high - low, 1)  # a constant has no range
    scales = span / levels
    zeros = jnp.round(-low / scales)
    keep = low.ndim > 1
    rest = tuple(i for i in range(x.ndim) if not keep or low.shape[i + 1] == 1)

    def error(scale, zero):
        y = (jnp.clip(jnp.round(wide / scale) + zero, 0, levels) - zero) * scale
        return jnp.mean(jnp.square(y - wide), rest, keepdims=keep)

    each = [error(s, z) for s, z in zip(scales, zeros, strict=True)]
    first = jnp.argmin(jnp.stack(each), 0, keepdims=True)
    scale, zero = (jnp.take_along_axis(v, first, 0)[0] for v in (scales, zeros))
    return scale, zero
