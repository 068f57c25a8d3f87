"""Weight Compander: a bounded function of every weight."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.reparam.base import (
    KERNEL,
    REPARAMS,
    Reparameterization,
)


def compand_weight(
    kernel: jax.Array, amplitude: jax.Array, width: jax.Array
) -> jax.Array:
    """amplitude arctan(v / width), entry by entry (Cakaj, Mehnert & Yang, 2023).

    Bounded by amplitude * pi / 2; steeper at 0 than elsewhere, so that weights leave 0.

    Args:
      kernel: v, of any shape.  amplitude, width: scalars.

    Returns:
      the shape of `kernel` in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> v = jnp.array([[-2.0, 0.0, 2.0]])
      >>> amplitude, width = jnp.array(4 / jnp.pi), jnp.array(2.0)
      >>> print(reparam.compand_weight(v, amplitude, width).round(3))
      [[-1.  0.  1.]]
    """
    wide, width = at_least_float32(kernel), at_least_float32(width)
    return at_least_float32(amplitude) * jnp.arctan(wide / width)


@REPARAMS.register("weight_compander")
@dataclasses.dataclass(frozen=True)
class WeightCompander(Reparameterization):
    """Every weight through a learned bounded function (Cakaj, Mehnert & Yang, 2023).

    See `compand_weight`. Learns the scalars `amplitude` and `width`, which start at the
    given multiples of the root mean square of the initial kernel.

    Attributes:
      amplitude, width: these multiples. Small weights start as they are where both are
        equal.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> compander = reparam.WeightCompander()
      >>> layer = {"kernel": jnp.array([[1.0, 7.0]])}  # root mean square 5
      >>> own, state = compander.create(layer, jax.random.key(0))
      >>> {name: float(value) for name, value in sorted(own.items())}
      {'amplitude': 5.0, 'width': 5.0}
    """

    amplitude: float = 1.0
    width: float = 1.0

    own: ClassVar[tuple[str, ...]] = ("amplitude", "width")

    def create(self, layer, key):
        """`amplitude` and `width`."""
        del key
        kernel = layer[KERNEL]
        size = jnp.sqrt(jnp.mean(jnp.square(at_least_float32(kernel))))
        size = jnp.where(size > 0, size, 1).astype(kernel.dtype)
        return {"amplitude": self.amplitude * size, "width": self.width * size}, {}

    def effective(self, layer, own, state, *, train):
        """`kernel` is replaced; see the class."""
        del train
        kernel = compand_weight(layer[KERNEL], own["amplitude"], own["width"])
        return {**layer, KERNEL: kernel}, state
