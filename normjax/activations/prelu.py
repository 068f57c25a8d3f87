"""PReLU: a ReLU with a learned slope."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.activations.base import ACTIVATIONS
from normjax.core.moments import at_least_float32


@ACTIVATIONS.register("prelu")
class PReLU(nn.Module):
    """y = x for x > 0, else slope * x (He et al., 2015). Gradient at 0 is the slope.

    Attributes:
      per_channel: a `slope` [C] for the last axis; else one, [].
      slope_init: of the slopes.  param_dtype: of the parameter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> x = jnp.array([[-4.0, 4.0]])
      >>> y, variables = activations.PReLU().init_with_output(jax.random.key(0), x)
      >>> print(y, variables["params"]["slope"])
      [[-1.  4.]] [0.25 0.25]
    """

    per_channel: bool = True
    slope_init: float = 0.25
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:] if self.per_channel else ()
        init = nn.initializers.constant(self.slope_init)
        slope = self.param("slope", init, shape, self.param_dtype)
        wide = at_least_float32(x)
        slope = jnp.broadcast_to(slope.astype(wide.dtype), x.shape)
        return jnp.where(wide > 0, wide, slope * wide).astype(x.dtype)
