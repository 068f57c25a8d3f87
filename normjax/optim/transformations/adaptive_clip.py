"""Clipping of gradients relative to the weights that they move."""

import re

import jax
import jax.numpy as jnp
import optax

from normjax.core.moments import at_least_float32
from normjax.core.scanned import per_layer
from normjax.optim.base import TRANSFORMATIONS

SMALLEST_NORM = 1e-6  # of a gradient that divides


def unit_norm(x: jax.Array, *, multihead: bool = False) -> jax.Array:
    """Euclidean norm of every output unit of x, in a shape that broadcasts to x.

    Args:
      x: [..., out], one unit per last index; an array that is a scalar or a vector but
        for dims of size 1 is one unit.
      multihead: arrays of three dims are [in, heads, width] and have one unit per head
        and channel, instead of [k, k, C].
    """
    axes: tuple[int, ...] = tuple(range(x.ndim - 1))
    if sum(size > 1 for size in x.shape) <= 1:
        axes = tuple(range(x.ndim))
    elif multihead and x.ndim == 3:
        axes = (0,)
    return jnp.sqrt(jnp.sum(jnp.square(at_least_float32(x)), axes, keepdims=True))


@TRANSFORMATIONS.register("adaptive_clip")
def adaptive_clip(
    clip: float = 0.01,
    *,
    epsilon: float = 1e-3,
    exclude: str = "^head/kernel$",
    multihead: bool = False,
    scanned: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """Adaptive gradient clipping (AGC; Brock et al., 2021).

    Per output unit with weights w and gradient g, m = clip max(|w|, epsilon):

        g <- g m / max(|g|, 1e-6)  where |g| >= m

    Biases and gains are clipped as well, each as one unit.

    Args:
      clip: largest ratio of gradient to weights.
      epsilon: smallest norm that weights count with, so that those at 0 can move.
      exclude: regular expression, searched in the path of a parameter, of those that
        are left alone: the weights of the classifier.
      multihead: arrays of three dims are [in, heads, width] and have one unit per head
        and channel, instead of [k, k, C].
      scanned: names at the root of parameters with a first axis of layers, each of
        which is treated by itself (see `core.scanned`).

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> transformation = optim.adaptive_clip(clip=0.5)
      >>> params = {"fc": {"kernel": jnp.array([[3.0], [4.0]])}}  # one unit, of norm 5
      >>> grads = {"fc": {"kernel": jnp.array([[30.0], [40.0]])}}
      >>> clipped, _ = transformation.update(grads, transformation.init(params), params)
      >>> print(clipped["fc"]["kernel"].ravel())  # of norm 2.5
      [1.5 2. ]
    """
    left_alone = re.compile(exclude)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("adaptive_clip: update(updates, state, params)")

        def clipped(g, w):
            size = unit_norm(g, multihead=multihead)
            most = clip * jnp.maximum(unit_norm(w, multihead=multihead), epsilon)
            factor = most / jnp.maximum(size, SMALLEST_NORM)
            return jnp.where(size >= most, g * factor, g).astype(g.dtype)

        def at(path, g, w):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if left_alone.search(name):
                return g
            return per_layer(clipped, name, scanned)(g, w)

        return jax.tree_util.tree_map_with_path(at, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
