"""Neurons that give nothing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class DeadNeurons(NamedTuple):
    """How many neurons are dead, of one layer or of several.

    Attributes:
      dynamic: share of (example, neuron) that is 0.
      static: share of neurons that are 0 for every example.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> found = analysis.dead_neurons(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
      >>> float(found.dynamic), float(found.static)
      (0.75, 0.5)
    """

    dynamic: jax.Array
    static: jax.Array


def dead_neurons(*activations: jax.Array) -> DeadNeurons:
    """Dynamic and static dead neuron rate behind ReLUs (AP; Liu et al., 2023).

    Every position of a map is a neuron; all neurons of all layers count as much.

    Args:
      *activations: [B, ...] of each layer, of the same examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import analysis
      >>> wide, narrow = jnp.zeros((2, 3)), jnp.ones((2, 1))
      >>> found = analysis.dead_neurons(wide, narrow)
      >>> float(found.dynamic), float(found.static)
      (0.75, 0.75)
    """
    zero = jnp.concatenate([(a == 0).reshape(len(a), -1) for a in activations], 1)
    share = functools.partial(jnp.mean, dtype=jnp.result_type(float))
    return DeadNeurons(share(zero), share(jnp.all(zero, 0)))
