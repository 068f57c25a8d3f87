"""Weight normalization: kernels by length and direction."""

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
)


def unit_norms(kernel: jax.Array) -> jax.Array:
    """Euclidean norm [out] of the weights of every output unit, in at least float32."""
    squares = jnp.square(at_least_float32(kernel))
    return jnp.sqrt(jnp.sum(squares, fan_in_axes(kernel)))


def weight_normalize(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    """gain v / |v| per output unit (Salimans & Kingma, 2016). v = 0 gives NaN.

    Args:
      kernel: v, [..., in, out].  gain: [out].

    Returns:
      [..., in, out] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> kernel = jnp.array([[3.0], [4.0]])  # one output, of norm 5
      >>> print(reparam.weight_normalize(kernel, jnp.array([10.0])).ravel())
      [6. 8.]
    """
    length = at_least_float32(gain) / unit_norms(kernel)
    return at_least_float32(kernel) * per_unit(length, kernel)


@REPARAMS.register("weight_normalization")
@dataclasses.dataclass(frozen=True)
class WeightNormalization(Reparameterization):
    """Length and direction of every output unit's weights (Salimans & Kingma, 2016).

    See `weight_normalize`. Learns `gain` [out], which starts at the norms of the
    initial kernel: the effective kernel then is that one. The paper's initialisation
    from a batch of data is left out.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> wn = reparam.WeightNormalization()
      >>> layer = {"kernel": jnp.array([[3.0], [4.0]])}
      >>> own, state = wn.create(layer, jax.random.key(0))
      >>> new, _ = wn.effective(layer, own, state, train=True)
      >>> print(own["gain"], new["kernel"].ravel())
      [5.] [3. 4.]
    """

    own: ClassVar[tuple[str, ...]] = ("gain",)

    def create(self, layer, key):
        """`gain`."""
        del key
        kernel = layer[KERNEL]
        return {"gain": unit_norms(kernel).astype(kernel.dtype)}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del train
        return {**layer, KERNEL: weight_normalize(layer[KERNEL], own["gain"])}, state
