"""Norms over the features of one token: no state, train and evaluation alike."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.backward import custom_backward
from normjax.core.dtypes import result_dtype
from normjax.core.moments import at_least_float32
from normjax.core.spmd import match_varying
from normjax.norms.base import (
    NORMS,
    affine_gradients,
    affine_parameters,
    apply_affine,
)


def layer_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: float = 1e-6,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias per token (Ba et al., 2016).

    Moments over the last axis in at least float32, two-pass biased variance. The
    backward pass is written by hand: it keeps x and one mean and one root a
    token, nothing else.

    Args:
      x: [..., C].  scale, bias: [C], or None for none.

    Returns:
      [..., C] in at least float32.
    """
    return _token_normalize(*match_varying(x, scale, bias), epsilon, True, 0)


def rms_normalize(
    x: jax.Array, scale: jax.Array | None = None, *, epsilon: float = 1e-6
) -> jax.Array:
    """x / sqrt(mean(x**2) + epsilon) * scale per token (Zhang & Sennrich, 2019).

    As `layer_normalize`, without the mean.

    Args:
      x: [..., C].  scale: [C], or None for none.

    Returns:
      [..., C] in at least float32.
    """
    return _token_normalize(*match_varying(x, scale), None, epsilon, False, 0)


def crms_normalize(x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """x / sqrt((sum(x**2) + sum(x)**2) / (C + 1) + epsilon) per token.

    RMS normalisation of the C + 1 entries with sum 0 of which x is the first C (Jiang
    et al., 2023). Gradient as in `layer_normalize`.

    Args:
      x: [..., C].

    Returns:
      [..., C] in at least float32.
    """
    return _token_normalize(x, None, None, epsilon, False, 1)


@functools.partial(custom_backward, nondiff_argnums=(3, 4, 5))
def _token_normalize(x, scale, bias, epsilon, centered, implied):
    return _token_forward(x, scale, bias, epsilon, centered, implied)[0]


def _token_forward(x, scale, bias, epsilon, centered, implied):
    wide, mean = at_least_float32(x), None
    if centered:
        mean = jnp.mean(wide, -1, keepdims=True)
        wide = wide - mean
    square = jnp.sum(jnp.square(wide), -1, keepdims=True)
    if implied:
        square += jnp.square(jnp.sum(wide, -1, keepdims=True))
    inverse_root = jax.lax.rsqrt(square / (x.shape[-1] + implied) + epsilon)
    y = apply_affine(wide * inverse_root, scale, bias)
    return y, (x, mean, inverse_root, scale, bias)


def _token_backward(epsilon, centered, implied, saved, dy):
    del epsilon
    x, mean, inverse_root, scale, bias = saved
    wide = at_least_float32(x)
    normalized = (wide - mean if centered else wide) * inverse_root
    g, dscale, dbias = affine_gradients(dy, normalized, scale, bias)
    along = jnp.sum(g * normalized, -1, keepdims=True) / (x.shape[-1] + implied)
    if implied:
        # The implied entry -sum(x) changes with every entry.
        normalized += jnp.sum(normalized, -1, keepdims=True)
    dx = g - normalized * along
    if centered:
        dx = dx - jnp.mean(g, -1, keepdims=True)
    return (inverse_root * dx).astype(x.dtype), dscale, dbias


_token_normalize.defvjp(_token_forward, _token_backward)


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
        affine = affine_parameters(self, x.shape[-1], use_bias=self.use_bias)
        y = layer_normalize(x, *affine, epsilon=self.epsilon)
        return y.astype(result_dtype(x, *affine, dtype=self.dtype))


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
        scale, _ = affine_parameters(self, x.shape[-1], use_bias=False)
        y = rms_normalize(x, scale, epsilon=self.epsilon)
        return y.astype(result_dtype(x, scale, dtype=self.dtype))


@NORMS.register("simple_rms_norm", "seq", "grid", "causal", "decode")
class SimpleRMSNorm(RMSNorm):
    """y = x / sqrt(mean(x**2) + epsilon): no parameters (Qin et al., 2023).

    RMSNorm under the name that TransNormerLLM gives it; attributes as there.
    """

    use_scale: bool = False


@NORMS.register("crms_norm", "seq", "grid", "causal", "decode")
class CRMSNorm(nn.Module):
    """y = x / sqrt((sum(x**2) + sum(x)**2) / (C + 1) + epsilon) (Jiang et al., 2023).

    The C entries stand for C + 1 entries of sum 0 whose last one is left out: a Pre-LN
    transformer of width C + 1 becomes one of width C with this norm. No parameters, no
    state; sums in at least float32.

    Attributes:
      epsilon: added inside the root.
      dtype: of the result; None keeps the input's.
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
