"""InstanceNorm: moments of one example and channel over its positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dtypes import result_dtype
from normjax.norms.base import NORMS, affine_parameters
from normjax.norms.pooled import Pool, pool_normalize


def instance_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias per example and channel.

    Moments over the valid positions (Ulyanov et al., 2016); the group normalisation of
    C groups, without its view.

    Args:
      x: [B, ..., C].  scale, bias: [C], or None for none.
      mask: leading or all dims of x; True feeds the moments.
      epsilon: added to the variance.

    Returns:
      [B, ..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])
      >>> print(norms.instance_normalize(x, epsilon=0.0)[..., 0].round(3))
      [[-1.  1.]
       [-1.  1.]]
    """
    pool = Pool(tuple(range(1, x.ndim - 1)))
    return pool_normalize(x, scale, bias, pool=pool, mask=mask, epsilon=epsilon)[0]


@NORMS.register("instance_norm", "mask", "seq", "grid")
class InstanceNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias (Ulyanov et al., 2016).

    Moments per example and channel over the positions that `mask` leaves, in at least
    float32; every position is normalised. No state, evaluation as training.

    Attributes:
      epsilon: added to the variance.  use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.InstanceNorm(epsilon=0.0, use_scale=False, use_bias=False)
      >>> x = jnp.array([[[1.0], [3.0], [50.0]]])
      >>> mask = jnp.array([[True, True, False]])
      >>> print(norm.apply({}, x, mask=mask)[..., 0].round(3))
      [[-1. 1. 48.]]
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.ones
    bias_init: Initializer | float = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, ..., C] -> [B, ..., C]; `mask` as in BatchNorm, `train` unused."""
        del train
        affine = affine_parameters(self, x.shape[-1], use_bias=self.use_bias)
        y = self.normalize(x, affine, mask)
        return y.astype(result_dtype(x, *affine, dtype=self.dtype))

    @nn.nowrap
    def normalize(
        self,
        x: jax.Array,
        affine: tuple[jax.Array | None, jax.Array | None],
        mask: jax.Array | None,
    ) -> jax.Array:
        """The output before its last cast."""
        return instance_normalize(x, *affine, mask=mask, epsilon=self.epsilon)
