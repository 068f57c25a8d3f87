"""Clipping of all gradients together."""

import optax

from normjax.optim.base import TRANSFORMATIONS


@TRANSFORMATIONS.register("clip_by_global_norm")
def clip_by_global_norm(max_norm: float = 1.0) -> optax.GradientTransformation:
    """g <- g min(1, max_norm / |g|), |g| the norm of all (Pascanu et al., 2013)."""
    return optax.clip_by_global_norm(max_norm)
