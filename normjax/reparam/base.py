"""What all reparameterizations share: their registry, their form, units of a kernel."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from normjax.core.registry import Registry

REPARAMS = Registry("reparameterization")
"""The reparameterizations by key: a row has `name` and `make`, the class.

`rules_of` reads rules with such keys.

Example:
  >>> from normjax.reparam import REPARAMS
  >>> "sigma_reparam" in REPARAMS
  True
  >>> sorted(e.name for e in REPARAMS if "weight_s" in e.name)
  ['scaled_weight_standardization', 'weight_standardization']
"""

KERNEL, BIAS, SCALE = "kernel", "bias", "scale"

Arrays = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Reparameterization(abc.ABC):
    """Effective weights of one layer as a pure function of its raw ones.

    A layer is a dict of arrays by the names of its parameters: a linear layer has
    `kernel` [..., in, out] (outputs last, everything before them is fan-in) and perhaps
    `bias` [out]; a norm has `scale` and perhaps `bias`. All is computed in at least
    float32.

    Attributes:
      own: names of the parameters that it adds.  held: names of its state.
      on_norms: whether norms are taken as well, not only layers with a kernel.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import reparam
      >>> class Halved(reparam.Reparameterization):  # of one's own
      ...     def effective(self, layer, own, state, *, train):
      ...         return {**layer, "kernel": layer["kernel"] / 2}, state
      >>> rule = reparam.Rule("fc", Halved())
      >>> variables = {"params": {"fc1": {"kernel": jnp.full((1, 2), 4.0)}}}
      >>> variables = reparam.attach([rule], variables, jax.random.key(0))
      >>> result = reparam.effective([rule], variables, train=False)
      >>> print(result.params["fc1"]["kernel"])
      [[2. 2.]]
    """

    own: ClassVar[tuple[str, ...]] = ()
    held: ClassVar[tuple[str, ...]] = ()
    on_norms: ClassVar[bool] = False

    def create(self, layer: Arrays, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Own parameters and state, by name, for a layer that has just been made.

        Args:
          layer: its raw weights.  key: for those that start at random.
        """
        del layer, key
        return {}, {}

    @abc.abstractmethod
    def effective(
        self, layer: Arrays, own: Arrays, state: Arrays, *, train: bool
    ) -> tuple[Arrays, Arrays]:
        """The weights that the layer computes with, and the next state.

        Args:
          layer: raw weights.  own, state: as from `create`.
          train: whether the state moves; if not, it comes back as it is.
        """


def fan_in_axes(kernel: jax.Array) -> tuple[int, ...]:
    """All axes but the last, over which one output unit extends."""
    return tuple(range(kernel.ndim - 1))


def per_unit(vector: jax.Array, kernel: jax.Array) -> jax.Array:
    """[out] -> [1, ..., 1, out]: no implicit rank promotion."""
    return vector.reshape((1,) * (kernel.ndim - 1) + vector.shape)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x) with gradient 0, not infinite, at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)
