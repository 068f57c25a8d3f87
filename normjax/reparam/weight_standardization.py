"""Kernels standardised per output unit: Weight Standardization, plain and scaled."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.reparam.base import (
    KERNEL,
    REPARAMS,
    Reparameterization,
    fan_in_axes,
    per_unit,
    safe_sqrt,
)


def _centred(kernel: jax.Array) -> tuple[jax.Array, jax.Array, int]:
    """kernel - mean, sum of its squares and number of entries, per output unit."""
    wide, axes = at_least_float32(kernel), fan_in_axes(kernel)
    centred = wide - jnp.mean(wide, axes, keepdims=True)
    squares = jnp.sum(jnp.square(centred), axes, keepdims=True)
    return centred, squares, kernel.size // kernel.shape[-1]


def standardize_weight(
    kernel: jax.Array,
    *,
    epsilon: float = 1e-5,
    epsilon_inside: bool = False,
    unbiased: bool = True,
) -> jax.Array:
    """(w - mean) / (std + epsilon) per output unit (Qiao et al., 2019).

    With `epsilon_inside`, (w - mean) / sqrt(var + epsilon). The gradient goes through
    mean and variance; a unit whose entries are all equal gives 0, with the gradient of
    (w - mean) / epsilon.

    Args:
      kernel: [..., in, out].  epsilon: added to the standard deviation.
      epsilon_inside: add it to the variance instead.
      unbiased: the variance is the sum of squares over n - 1, not n.

    Returns:
      [..., in, out] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.array([[1.0], [2.0], [3.0]])
      >>> print(reparam.standardize_weight(kernel).ravel().round(3))
      [-1.  0.  1.]
    """
    centred, squares, count = _centred(kernel)
    var = squares / max(count - unbiased, 1)
    if epsilon_inside:
        return centred * jax.lax.rsqrt(var + epsilon)
    return centred / (safe_sqrt(var) + epsilon)


def scaled_standardize_weight(
    kernel: jax.Array, gain: jax.Array, *, epsilon: float = 1e-4
) -> jax.Array:
    """(w - mean) gain / sqrt(max(n var, epsilon)) per output unit (Brock et al., 2021).

    n is the fan-in and var biased. Below the floor the variance gets no gradient.

    Args:
      kernel: [..., in, out].  gain: [out].  epsilon: smallest n var that divides.

    Returns:
      [..., in, out] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.array([[1.0], [3.0], [1.0], [3.0]])  # n var = 4
      >>> print(reparam.scaled_standardize_weight(kernel, jnp.array([2.0])).ravel())
      [-1.  1. -1.  1.]
    """
    centred, squares, _ = _centred(kernel)
    root = jax.lax.rsqrt(jnp.maximum(squares, epsilon))
    return centred * root * per_unit(at_least_float32(gain), kernel)


@REPARAMS.register("weight_standardization")
@dataclasses.dataclass(frozen=True)
class WeightStandardization(Reparameterization):
    """Zero mean and unit variance of every output unit's weights (Qiao et al., 2019).

    See `standardize_weight`. For layers that a norm reads: the scale of the weights is
    lost. Published forms: `epsilon_inside=True` (the code of Batch-Channel
    Normalization), the defaults (the README in PyTorch), `unbiased=False` (the README
    in TensorFlow).

    Attributes:
      epsilon: added to the standard deviation, or inside the root.
      epsilon_inside: which of the two.  unbiased: n - 1 in the variance.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> ws = reparam.WeightStandardization(unbiased=False)
      >>> layer = {"kernel": jnp.array([[1.0], [3.0]])}
      >>> new, _ = ws.effective(layer, {}, {}, train=True)
      >>> print(new["kernel"].ravel().round(3))
      [-1.  1.]
    """

    epsilon: float = 1e-5
    epsilon_inside: bool = False
    unbiased: bool = True

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del own, train
        arguments = dataclasses.asdict(self)
        return {**layer, KERNEL: standardize_weight(layer[KERNEL], **arguments)}, state


@REPARAMS.register("scaled_weight_standardization")
@dataclasses.dataclass(frozen=True)
class ScaledWeightStandardization(Reparameterization):
    """Zero mean and norm `gain` of every output unit's weights (Brock et al., 2021).

    See `scaled_standardize_weight`. The layers of NFNets, which have no norms; the
    constant of the activation (relu 1.7139588594436646, gelu 1.7015043497085571, silu
    1.7881293296813965) belongs to the activation, not here. Learns `gain` [out],
    from 1.

    Attributes:
      epsilon: smallest n var that divides.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> ws = reparam.ScaledWeightStandardization()
      >>> layer = {"kernel": jnp.array([[1.0], [3.0], [1.0], [3.0]])}
      >>> own, state = ws.create(layer, jax.random.key(0))
      >>> new, _ = ws.effective(layer, own, state, train=True)
      >>> print(own["gain"], new["kernel"].ravel())
      [1.] [-0.5  0.5 -0.5  0.5]
    """

    epsilon: float = 1e-4

    own: ClassVar[tuple[str, ...]] = ("gain",)

    def create(self, layer, key):
        """`gain` of ones."""
        del key
        kernel = layer[KERNEL]
        return {"gain": jnp.ones(kernel.shape[-1], kernel.dtype)}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del train
        kernel = scaled_standardize_weight(
            layer[KERNEL], own["gain"], epsilon=self.epsilon
        )
        return {**layer, KERNEL: kernel}, state
