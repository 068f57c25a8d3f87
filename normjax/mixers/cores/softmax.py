"""Softmax attention as a core."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.mixers.base import CORES
from normjax.mixers.ops.attend import softmax_over_maps


@CORES.register("softmax")
class Softmax(nn.Module):
    """softmax(q k^T / sqrt(K)) v per head (Vaswani et al., 2017). No parameters.

    Regions are ignored.

    Attributes:
      num_heads: heads.
      dtype, param_dtype: unused: the result has the type of the queries.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import cores
      >>> q = k = jnp.zeros((1, 1, 2, 1))  # [B, H, W, D]: all keys alike
      >>> v = jnp.array([2.0, 4.0]).reshape(1, 1, 2, 1)
      >>> print(cores.Softmax(num_heads=1).apply({}, q, k, v).ravel())
      [3. 3.]
    """

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: jax.Array | None = None,
        regions: np.ndarray | None = None,
    ) -> jax.Array:
        """q: [B, H, W, D], k and v: [B, H', W', D] -> as q. See `mixers.cores`."""
        del regions
        return softmax_over_maps(q, k, v, self.num_heads, mask=mask)
