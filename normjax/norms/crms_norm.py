"""CRMSNorm: RMSNorm of a vector that one entry completes to sum 0."""

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.core.dtypes import result_dtype
from normjax.norms.base import NORMS
from normjax.norms.layer_norm import token_normalize


def crms_normalize(x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """x / sqrt((sum(x**2) + sum(x)**2) / (C + 1) + epsilon) per token.

    RMS normalisation of the C + 1 entries with sum 0 of which x is the first C (Jiang
    et al., 2023). Gradient as in `layer_normalize`.

    Args:
      x: [..., C].  epsilon: added inside the root.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[2.0, 2.0, -2.0]])  # stands for 2, 2, -2, -2
      >>> print(norms.crms_normalize(x).round(3))
      [[ 1.  1. -1.]]
    """
    return token_normalize(x, None, None, epsilon, False, 1)


@NORMS.register("crms_norm", "seq", "grid", "causal", "decode")
class CRMSNorm(nn.Module):
    """y = x / sqrt((sum(x**2) + sum(x)**2) / (C + 1) + epsilon) (Jiang et al., 2023).

    The C entries stand for C + 1 entries of sum 0 whose last one is left out: a Pre-LN
    transformer of width C + 1 becomes one of width C with this norm. No parameters, no
    state; sums in at least float32.

    Attributes:
      epsilon: added inside the root.
      dtype: of the result; None keeps the input's.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.CRMSNorm()
      >>> x = jnp.array([[2.0, 2.0, -2.0]])  # stands for 2, 2, -2, -2
      >>> y, variables = norm.init_with_output(jax.random.key(0), x)
      >>> print(y.round(3), variables)
      [[ 1.  1. -1.]] {}
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None

    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [..., C] -> [..., C]. `mask`, `train` unused: one token, one rule."""
        del mask, train
        y = crms_normalize(x, epsilon=self.epsilon)
        return y.astype(result_dtype(x, dtype=self.dtype))
