"""No normalization: the control, and what a folded norm becomes."""

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.norms.base import NORMS


@NORMS.register("none", "seq", "grid", "causal", "decode")
class NoNorm(nn.Module):
    """y = x. Has no parameters and no state.

    Attributes:
      dtype: of the result; None keeps the input's.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> print(norms.NoNorm().apply({}, jnp.array([1.0, 2.0])))
      [1. 2.]
    """

    dtype: Dtype | None = None

    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [..., C] -> [..., C]. `mask` and `train` are unused: there is no rule."""
        del mask, train
        return x if self.dtype is None else x.astype(self.dtype)
