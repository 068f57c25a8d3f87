"""Clipping of all gradients together."""

import optax

from normjax.optim.base import TRANSFORMATIONS


@TRANSFORMATIONS.register("clip_by_global_norm")
def clip_by_global_norm(max_norm: float = 1.0) -> optax.GradientTransformation:
    """g <- g min(1, max_norm / |g|), |g| the norm of all (Pascanu et al., 2013).

    Args:
      max_norm: largest norm of all gradients together.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import optim
      >>> transformation = optim.clip_by_global_norm(max_norm=1.0)
      >>> grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> clipped, _ = transformation.update(grads, transformation.init(grads))
      >>> print(clipped["a"].round(3), clipped["b"].round(3))
      [0.6] [0.8]
    """
    return optax.clip_by_global_norm(max_norm)
