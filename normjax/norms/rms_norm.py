"""RMSNorm, with a scale and without: no mean, no state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dtypes import result_dtype
from normjax.core.spmd import match_varying
from normjax.norms.base import NORMS, affine_parameters
from normjax.norms.layer_norm import token_normalize


def rms_normalize(
    x: jax.Array, scale: jax.Array | None = None, *, epsilon: float = 1e-6
) -> jax.Array:
    """x / sqrt(mean(x**2) + epsilon) * scale per token (Zhang & Sennrich, 2019).

    As `layer_normalize`, without the mean.

    Args:
      x: [..., C].  scale: [C], or None for none.
      epsilon: added inside the root.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[3.0, 3.0, 1.0, 1.0, 0.0]])  # root mean square 2
      >>> scale = jnp.array([1.0, 2.0, 1.0, 2.0, 1.0])
      >>> print(norms.rms_normalize(x, scale).round(3))
      [[1.5 3. 0.5 1. 0.]]
    """
    return token_normalize(*match_varying(x, scale), None, epsilon, False, 0)


@NORMS.register("rms_norm", "seq", "grid", "causal", "decode")
class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x**2) + epsilon) * scale, per token (Zhang & Sennrich, 2019).

    Mean over the last axis in at least float32. No state.

    Attributes:
      epsilon: added inside the root.  use_scale: learn `scale` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init: of the parameter.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.RMSNorm()
      >>> x = jnp.array([[3.0, 3.0, 1.0, 1.0, 0.0]])  # root mean square 2
      >>> variables = norm.init(jax.random.key(0), x)
      >>> print(norm.apply(variables, x).round(3))
      [[1.5 1.5 0.5 0.5 0.]]
      >>> variables["params"]["scale"].shape
      (5,)
    """

    epsilon: float = 1e-6
    use_scale: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer | float = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [..., C] -> [..., C]. `mask`, `train` unused: one token, one rule."""
        del mask, train
        scale, _ = affine_parameters(self, x.shape[-1], use_bias=False)
        y = rms_normalize(x, scale, epsilon=self.epsilon)
        return y.astype(result_dtype(x, scale, dtype=self.dtype))


@NORMS.register("simple_rms_norm", "seq", "grid", "causal", "decode")
class SimpleRMSNorm(RMSNorm):
    """y = x / sqrt(mean(x**2) + epsilon): no parameters (Qin et al., 2023).

    RMSNorm under the name that TransNormerLLM gives it.

    Attributes:
      epsilon: added inside the root.  use_scale: learn `scale` [C] after all.
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init: of the parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[3.0, 3.0, 1.0, 1.0, 0.0]])  # root mean square 2
      >>> print(norms.SimpleRMSNorm().apply({}, x).round(3))
      [[1.5 1.5 0.5 0.5 0.]]
    """

    use_scale: bool = False
