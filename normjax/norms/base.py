"""What all norms share: their registry, the learned affine map, the folded form."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from normjax.core import registry

NORMS = registry.NORMS
"""The norms by key: `NORMS["rms_norm"]` is its row, `NORMS` iterates over all.

A row has `name`, `make` (the class) and `tags`, what it uses and accepts (see
`core.registry`). `build` makes a factory of a key.

Example:
  >>> from normjax.norms import NORMS
  >>> entry = NORMS["rms_norm"]
  >>> entry.make.__name__, sorted(entry.tags)
  ('RMSNorm', ['causal', 'decode', 'grid', 'seq'])
  >>> "layer_norm" in NORMS
  True
  >>> sorted(e.name for e in NORMS if "rms" in e.name)
  ['crms_norm', 'rms_norm', 'simple_rms_norm']
"""


class InferenceAffine(NamedTuple):
    """What a batch-type norm is at evaluation: y = scale * x + shift, per channel.

    Modules that have such a form offer `inference_affine(variables)`; `fusion` folds it
    into a neighbouring linear layer.

    Attributes:
      scale, shift: [C], float64 NumPy.
      before: module without parameters that x goes through first; None for none. It
        stays where the norm was.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.BatchNorm(epsilon=0.0, scale_init=2.0, bias_init=3.0)
      >>> variables = norm.init(jax.random.key(0), jnp.ones((1, 4)), train=False)
      >>> affine = norm.inference_affine(variables)
      >>> print(affine.scale, affine.shift, affine.before)
      [2. 2. 2. 2.] [3. 3. 3. 3.] None
    """

    scale: np.ndarray
    shift: np.ndarray
    before: nn.Module | None = None


def includes_activation(norm: Any) -> bool:
    """Whether hosts put no activation behind `norm`: `activates` of its class.

    Args:
      norm: a module, its class or a factory's.

    Example:
      >>> from normjax import norms
      >>> norms.includes_activation(norms.EvoNormS0(num_groups=2))
      True
      >>> norms.includes_activation(norms.BatchNorm())
      False
    """
    return getattr(norm, "activates", False)


def reads_batch(module: Any) -> bool:
    """Whether the rows of a batch meet in `module` at evaluation.

    `reads_batch` of its class. Rows that only fill a batch must not be in it then.

    Args:
      module: a norm, or any other module.

    Example:
      >>> from normjax import norms
      >>> norms.reads_batch(norms.BatchNorm())
      False
      >>> norms.reads_batch(norms.BatchNorm(use_running_average=False))
      True
      >>> norms.reads_batch(norms.RegionNorm())
      True
    """
    return getattr(module, "reads_batch", False)


def along_channels(vector: jax.Array, rank: int) -> jax.Array:
    """[C] -> [1, ..., 1, C] of the given rank: no implicit rank promotion."""
    return vector.reshape((1,) * (rank - vector.ndim) + vector.shape)


def as_initializer(value: Initializer | float) -> Initializer:
    """An initializer, given as itself or as the constant that a config can hold."""
    return value if callable(value) else nn.initializers.constant(value)


def affine_parameters(
    module: Any, channels: int, *, use_bias: bool
) -> tuple[jax.Array | None, jax.Array | None]:
    """The parameters `scale` and `bias` [C] of `module`, None where it learns none.

    Args:
      module: with `use_scale, scale_init, bias_init, param_dtype`.
    """
    scale = bias = None
    if module.use_scale:
        init = as_initializer(module.scale_init)
        scale = module.param("scale", init, (channels,), module.param_dtype)
    if use_bias:
        init = as_initializer(module.bias_init)
        bias = module.param("bias", init, (channels,), module.param_dtype)
    return scale, bias


def apply_affine(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """x * scale + bias along the last axis; None is left out.

    Args:
      scale, bias: [C], or more of the last dims of x, 1 where they broadcast.
    """
    if scale is not None:
        x = x * along_channels(scale, x.ndim)
    return x if bias is None else x + along_channels(bias, x.ndim)


def affine_gradients(
    dy: jax.Array,
    normalized: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Cotangents of (normalized, scale, bias) of `apply_affine`."""
    dscale = dbias = None
    if bias is not None:
        dbias = sum_like(dy, bias)
    if scale is not None:
        dscale = sum_like(dy * normalized, scale)
        dy = dy * along_channels(scale, dy.ndim)
    return dy, dscale, dbias


def sum_like(v: jax.Array, like: jax.Array) -> jax.Array:
    """`v` summed over the dims along which `like` was broadcast."""
    shape = (1,) * (v.ndim - like.ndim) + like.shape
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return jnp.sum(v, axes).reshape(like.shape).astype(like.dtype)
