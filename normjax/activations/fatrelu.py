"""FATReLU: a ReLU that begins later."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.activations.base import ACTIVATIONS
from normjax.core.errors import UserError


def fatrelu(x: jax.Array, threshold: float = 0.01, *, inclusive: bool = True):
    """x where x >= threshold, else 0: the activation that ProSparse ends with.

    Args:
      x: [...].  threshold: above 0 it makes more zeros than ReLU.
      inclusive: whether x = threshold is kept; public inference kernels drop it.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.fatrelu(jnp.array([-1.0, 0.25, 0.5]), 0.5))
      [0.  0.  0.5]
    """
    kept = x >= threshold if inclusive else x > threshold
    return jnp.where(kept, x, 0)


@ACTIVATIONS.register("fatrelu")
class FATReLU(nn.Module):
    """y = x where x >= threshold, else 0 (ProSparse; Song et al., 2025).

    Attributes:
      threshold: at least 0; the gradient is 1 where x is kept.

    Raises:
      UserError: a negative threshold.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import activations
      >>> print(activations.FATReLU(0.5).apply({}, jnp.array([0.25, 0.5])))
      [0.  0.5]
    """

    threshold: float = 0.01

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.threshold < 0:
            raise UserError(
                f"fatrelu: threshold must be at least 0, got {self.threshold}"
            )
        return fatrelu(x, self.threshold)
