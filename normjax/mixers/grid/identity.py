"""No mixing at all."""

from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from normjax.mixers.base import MIXERS


@MIXERS.register("identity", "seq", "grid", "causal", "decode", "mask")
class IdentityMixer(nn.Module):
    """y = x: positions do not meet (Yu et al., 2022). No parameters.

    Attributes:
      dtype: of the result; None keeps the input's.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> print(mixers.IdentityMixer().apply({}, jnp.array([[1.0, 2.0]])))
      [[1. 2.]]
    """

    dtype: Dtype | None = None

    # The input goes on into the residual stream.
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[str | None] = None

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """x: [..., C] -> same. The rest is unused: there is no rule and no cache."""
        del mask, positions, train, decode
        return x if self.dtype is None else x.astype(self.dtype)
