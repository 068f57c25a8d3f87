"""Norms over the features of one token: no state, train and evaluation alike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.moments import at_least_float32, masked_moments
from normjax.norms.base import NORMS, learned_affine


def layer_normalize(x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean(x)) / sqrt(var(x) + epsilon) over the last axis (Ba et al., 2016).

    x: [..., C] -> [..., C] in at least float32; two-pass biased variance.
    """
    mean, var, _ = masked_moments(x, (-1,))
    return (at_least_float32(x) - mean) * jax.lax.rsqrt(var + epsilon)


def rms_normalize(x: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x**2) + epsilon) over the last axis (Zhang & Sennrich, 2019).

    x: [..., C] -> [..., C] in at least float32.
    """
    x = at_least_float32(x)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + epsilon)


@NORMS.register("layer_norm", "seq", "grid", "causal", "decode")
class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, per token (Ba et al., 2016).

    Moments over the last axis in at least float32, variance in two passes. No state.

    Attributes:
      epsilon: added to the variance.  use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.
    """

    epsilon: float = 1e-6
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
        """x: [..., C] -> [..., C]. `mask`, `train` unused: one token, one rule."""
        del mask, train
        normalized = layer_normalize(x, self.epsilon)
        y, dtype = learned_affine(self, normalized, x, use_bias=self.use_bias)
        return y.astype(dtype)


@NORMS.register("rms_norm", "seq", "grid", "causal", "decode")
class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x**2) + epsilon) * scale, per token (Zhang & Sennrich, 2019).

    Mean over the last axis in at least float32. No state.

    Attributes:
      epsilon: added inside the root.  use_scale: learn `scale` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init: of the parameter.
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
        normalized = rms_normalize(x, self.epsilon)
        y, dtype = learned_affine(self, normalized, x, use_bias=False)
        return y.astype(dtype)
