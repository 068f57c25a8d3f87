"""Sharpness-aware minimization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from normjax.core.errors import UserError

EPSILON = 1e-12


def perturbed(params: Any, gradients: Any, rho: float) -> Any:
    """w + rho g / (|g| + 1e-12), with one norm of all gradients.

    Args:
      params: a tree of w.  gradients: the tree of g.  rho: the distance.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import perturbed
      >>> print(perturbed({"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}, 0.5)["w"])
      [0.3 0.4]
    """
    scale = rho / (optax.tree.norm(gradients) + EPSILON)
    return jax.tree.map(lambda w, g: (w + scale * g).astype(w.dtype), params, gradients)


def sharpness_aware_gradient(
    gradient: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    rho: float,
    parts: int = 1,
) -> Any:
    """The gradient at the worst point near the parameters (SAM; Foret et al., 2021).

        g = gradient(w)        result = gradient(w + rho g / |g|)

    With m-sharpness the batch is cut in parts, each perturbs by its own g, and the
    second gradients are averaged.

    Args:
      gradient: (params, batch) -> the mean gradient of the batch, a tree as params.
        Dropout has to draw the same in both calls.
      params: the parameters w.
      batch: a tree of arrays with a first axis of samples.
      rho: the distance.
      parts: equal parts, one after the other.

    Raises:
      UserError: a batch that does not split into the parts.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import sharpness_aware_gradient
      >>> gradient = lambda w, x: 2 * w + 0 * jnp.mean(x)  # of w^2
      >>> w, batch = jnp.array([3.0, 4.0]), jnp.zeros(2)
      >>> print(
      ...     sharpness_aware_gradient(gradient, w, batch, rho=0.5)
      ... )  # 2 (w + 0.5 w / 5)
      [6.6 8.8]
    """

    def one(part):
        return gradient(perturbed(params, gradient(params, part), rho), part)

    if parts == 1:
        return one(batch)
    samples = len(jax.tree.leaves(batch)[0])
    if samples % parts:
        raise UserError(f"a batch of {samples} does not split into {parts} parts")
    split = jax.tree.map(
        lambda x: x.reshape(parts, samples // parts, *x.shape[1:]), batch
    )
    return jax.tree.map(lambda g: jnp.mean(g, 0), jax.vmap(one)(split))
