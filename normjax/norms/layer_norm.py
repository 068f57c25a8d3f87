"""LayerNorm, and what it shares with the other norms over the features of a token."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.backward import custom_backward
from normjax.core.dtypes import result_dtype
from normjax.core.moments import at_least_float32
from normjax.core.spmd import match_varying
from normjax.core.tracing import traced_once
from normjax.kernels.attention import LANES, SUBLANES
from normjax.kernels.choice import kernel_or_function
from normjax.norms.base import NORMS, affine_gradients, affine_parameters, apply_affine


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
      epsilon: added to the variance.

    Returns:
      [..., C] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
      >>> y = norms.layer_normalize(x, scale=jnp.array([1.0, 2.0]), epsilon=0.0)
      >>> print(y.round(3))
      [[-1.  2.]
       [-1.  2.]]
    """
    return token_normalize(*match_varying(x, scale, bias), epsilon, True, 0)


@traced_once("epsilon", "centered", "implied")
def token_normalize(x, scale, bias, epsilon, centered, implied):
    """x, less its mean if `centered`, over its root mean square, times scale plus bias.

    With `implied` = 1 the mean square is that of the C + 1 entries x, -sum(x).
    """
    return _normalize(x, scale, bias, epsilon, centered, implied)


@functools.partial(custom_backward, nondiff_argnums=(3, 4, 5))
def _normalize(x, scale, bias, epsilon, centered, implied):
    return _forward(x, scale, bias, epsilon, centered, implied)[0]


def _forward(x, scale, bias, epsilon, centered, implied):
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


def _backward(epsilon, centered, implied, saved, dy):
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


_normalize.defvjp(_forward, _backward)


@NORMS.register("layer_norm", "seq", "grid", "causal", "decode")
class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, per token (Ba et al., 2016).

    Moments over the last axis in at least float32, variance in two passes. No state.

    Attributes:
      epsilon: added to the variance.  use_scale, use_bias: learn `scale`, `bias` [C].
      dtype: of the result; None infers it from input and parameters.
      param_dtype, scale_init, bias_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.LayerNorm()
      >>> x = jnp.array([[5.0, 2.0, 2.0, 3.0, 3.0, 3.0]])  # mean 3, variance 1
      >>> variables = norm.init(jax.random.key(0), x)
      >>> print(norm.apply(variables, x).round(3))
      [[ 2. -1. -1.  0.  0.  0.]]
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
        dtype = result_dtype(x, *affine, dtype=self.dtype)

        def function(x, scale, bias):
            return layer_normalize(x, scale, bias, epsilon=self.epsilon).astype(dtype)

        if not dtype == x.dtype == jnp.bfloat16 or not _narrow_map(x):
            return function(x, *affine)
        return _by_kernel(function, x, *affine, self.epsilon)


def _narrow_map(x: jax.Array) -> bool:
    """Whether a TPU has a kernel for it: tokens of 65 to 127 channels.

    Wider ones XLA normalizes beside the products before and behind them. Up to 64 it
    lays out with the images across the lanes, where sums over channels cost little.
    """
    if x.ndim != 4 or not LANES // 2 < x.shape[-1] < LANES:
        return False
    known = all(isinstance(size, int) for size in x.shape)  # not so when exported
    return known and x.shape[0] % SUBLANES == 0


def _by_kernel(function, x, scale, bias, epsilon: float) -> jax.Array:
    # Here, for Pallas takes longer to import than all norms.
    from normjax.kernels import layer_norm as kernels

    def kernel(x, scale, bias):
        return kernels.layer_norm(x, scale, bias, epsilon=epsilon)

    def pullback(given, dy):
        x, scale, bias = given
        dx, dscale, dbias = kernels.pullback(x, scale, dy, epsilon=epsilon)
        return (
            dx,
            None if scale is None else dscale.astype(scale.dtype),
            None if bias is None else dbias.astype(bias.dtype),
        )

    def chosen(x, *affine):
        return kernel_or_function(kernel, function, (x,), *affine, pullback=pullback)

    # Not elsewhere, where gradients by `pullback` would compute forward once more.
    return jax.lax.platform_dependent(x, scale, bias, tpu=chosen, default=function)
