"""Average pooling in the place of attention."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.depthwise import depthwise_conv
from normjax.core.moments import at_least_float32
from normjax.mixers.base import MIXERS
from normjax.mixers.ops.masks import only_valid


@MIXERS.register("pooling", "grid", "mask")
class Pooling(nn.Module):
    """y = pool(x) - x with a moving average (PoolFormer; Yu et al., 2022).

    The average runs over the positions of the window that are in the image. The block
    around adds x again. O(L C) additions; sums in at least float32. No parameters.

    Attributes:
      pool_size: side of the window, odd.
      dtype: of the result; None keeps the input's.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> x = jnp.array([0.0, 3.0, 6.0]).reshape(1, 1, 3, 1)  # [B, H, W, C]
      >>> print(mixers.Pooling(pool_size=3).apply({}, x).ravel())  # means 1.5, 3, 4.5
      [ 1.5  0.  -1.5]
    """

    pool_size: int = 3
    dtype: Dtype | None = None

    # No linear layer reads the input or gives the output: no norm folds into one.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None

    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same.

        Args:
          mask: bool [B, H, W]; False positions are not averaged.
          train: unused: one rule.

        Raises:
          ValueError: an even `pool_size`.
        """
        del train
        wide = at_least_float32(only_valid(x, mask))
        ones = jnp.ones((self.pool_size, self.pool_size, 1), wide.dtype)
        inside = jnp.ones((1, *x.shape[1:3]), bool) if mask is None else mask
        count = depthwise_conv(inside[..., None].astype(wide.dtype), ones)
        y = depthwise_conv(wide, ones) / jnp.maximum(count, 1) - wide
        return y.astype(self.dtype or x.dtype)
