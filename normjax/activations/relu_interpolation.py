"""Between ReLU and what is smooth."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.activations.base import ACTIVATIONS
from normjax.core.errors import UserError, one_of
from normjax.core.gelu import gelu
from normjax.core.moments import at_least_float32

SMOOTH = ("gelu", "silu")


@ACTIVATIONS.register("relu_interpolation")
class ReLUInterpolation(nn.Module):
    """y = r + factor (g - r), r = max(slope x, x), g smooth (Shah & Youngblood, 2024).

    g is GELU(scale x) / scale, exact, or SiLU(x). The derivative of r at 0 is `slope`
    next to GELU and 1 next to SiLU, as in the authors' code.

    Attributes:
      factor: 0 for ReLU, 1 for g.  smooth: "gelu" or "silu".
      scale: of GELU; the larger, the nearer to ReLU.  slope: of r below 0.

    Raises:
      UserError: an unknown `smooth`, a factor outside of [0, 1] or a scale of 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> half = activations.ReLUInterpolation(factor=0.5)
      >>> print(half.apply({}, jnp.array([-1.0, 0.0, 1.0])).round(3))
      [-0.079 0. 0.921]
    """

    factor: float = 0.5
    smooth: str = "gelu"
    scale: float = 1.0
    slope: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.smooth not in SMOOTH:
            raise UserError(one_of("smooth of relu_interpolation", self.smooth, SMOOTH))
        if not 0 <= self.factor <= 1 or self.scale <= 0:
            raise UserError(
                f"relu_interpolation: factor={self.factor} must lie in [0, 1], "
                f"scale={self.scale} above 0"
            )
        wide = at_least_float32(x)
        if self.smooth == "gelu":
            above, smooth = wide > 0, gelu(self.scale * wide) / self.scale
        else:
            above, smooth = wide >= 0, jax.nn.silu(wide)
        rectified = jnp.where(above, wide, self.slope * wide)
        return (rectified + self.factor * (smooth - rectified)).astype(x.dtype)
