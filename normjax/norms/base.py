"""What all norms share: their registry, the learned affine map, the folded form."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from normjax.core.dtypes import result_dtype
from normjax.core.registry import Registry

NORMS = Registry("norm")


class InferenceAffine(NamedTuple):
    """What a batch-type norm is at evaluation: y = scale * x + shift, per channel.

    Modules that have such a form offer `inference_affine(variables)`; `fusion` folds it
    into a neighbouring linear layer.

    Attributes:
      scale, shift: [C], float64 NumPy.
    """

    scale: np.ndarray
    shift: np.ndarray


def along_channels(vector: jax.Array, rank: int) -> jax.Array:
    """[C] -> [1, ..., 1, C] of the given rank: no implicit rank promotion."""
    return vector.reshape((1,) * (rank - 1) + vector.shape)


def as_initializer(value: Initializer | float) -> Initializer:
    """An initializer, given as itself or as the constant that a config can hold."""
    return value if callable(value) else nn.initializers.constant(value)


def learned_affine(
    module: Any, normalized: jax.Array, x: jax.Array, *, use_bias: bool
) -> tuple[jax.Array, jnp.dtype]:
    """normalized * scale + bias, and the dtype that `module` gives its result.

    Creates the parameters `scale` and `bias` [C] of `module`, which has the attributes
    `use_scale, scale_init, bias_init, param_dtype, dtype`. The result is still in the
    precision of `normalized`: the caller casts once, at the end.

    Args:
      normalized: [..., C], at least float32.  x: the module's input, for its dtype.
    """
    channels, y, parameters = x.shape[-1:], normalized, []
    if module.use_scale:
        init = as_initializer(module.scale_init)
        scale = module.param("scale", init, channels, module.param_dtype)
        parameters.append(scale)
        y = y * along_channels(scale, x.ndim)
    if use_bias:
        init = as_initializer(module.bias_init)
        bias = module.param("bias", init, channels, module.param_dtype)
        parameters.append(bias)
        y = y + along_channels(bias, x.ndim)
    return y, result_dtype(x, *parameters, dtype=module.dtype)
