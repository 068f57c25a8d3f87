"""Clipping of the gradient of each array by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.core.moments import at_least_float32
from normjax.core.scanned import per_layer
from normjax.optim.base import TRANSFORMATIONS
from normjax.optim.groups import path_name

EPSILON = 1e-6


def clip_to_norm(tree: Any, max_norm: float) -> Any:
    """g min(1, max_norm / (|g| + 1e-6)), |g| the norm of all arrays of the tree."""
    size = optax.tree.norm(jax.tree.map(at_least_float32, tree))
    factor = jnp.minimum(1, max_norm / (size + EPSILON))
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), tree)


@TRANSFORMATIONS.register("component_clip")
def component_clip(
    max_norm: float = 1.0, *, scanned: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """g <- g min(1, max_norm / (|g| + 1e-6)) of each array (Yang & Ma, 2022).

    It comes in place of the clipping of all gradients together (`clip_norm=0`). The
    published code clips the sum of gradients so far after each part of an accumulated
    batch; here it is done once, after all of them.

    Args:
      max_norm: largest norm of the gradient of an array; 0.01 to 5 were tried.
      scanned: names at the root of parameters with a first axis of layers, each of
        which is treated by itself (see `core.scanned`).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> transformation = optim.component_clip(max_norm=1.0)
      >>> grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
      >>> clipped, _ = transformation.update(grads, transformation.init(grads))
      >>> print(clipped["a"].round(3), clipped["b"])
      [0.6 0.8] [0.5]
    """

    def update(updates, state, params=None):
        del params

        def at(path, g):
            clip = per_layer(
                lambda g: clip_to_norm(g, max_norm), path_name(path), scanned
            )
            return clip(g)

        return jax.tree_util.tree_map_with_path(at, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
