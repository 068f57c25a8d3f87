"""Pruned weights that stay 0."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.core.scanned import is_scanned
from normjax.optim.base import TRANSFORMATIONS, of_updates
from normjax.optim.groups import path_name


@TRANSFORMATIONS.register("keep_zeros")
@of_updates
def keep_zeros(*, scanned: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """u <- u where w != 0, else 0: of kernels, whose zeros are what pruning has left.

    Biases and other vectors are not pruned, and may begin at 0. A weight that is 0 by
    chance is a pruned one from then on, as in PERP (Zimmer et al., 2023).

    Args:
      scanned: names at the root of parameters with a first axis of layers.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> transformation = optim.keep_zeros()
      >>> params = {"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.zeros(2)}
      >>> updates = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
      >>> found, _ = transformation.update(updates, transformation.init(params), params)
      >>> print(found["kernel"], found["bias"])
      [[0. 1.]] [1. 1.]
    """

    def update(updates: Any, state: Any, params: Any = None):
        def at(path, u, w):
            name = path_name(path)
            pruned = name.endswith("kernel") and w.ndim > 1 + is_scanned(name, scanned)
            return jnp.where(w != 0, u, jnp.zeros_like(u)) if pruned else u

        return jax.tree_util.tree_map_with_path(at, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
