"""Optimizers, each in the file of its key or of its kind.

Example:
  >>> import jax.numpy as jnp
  >>> from normjax.optim import optimizers
  >>> adamw = optimizers.adamw(lambda step: 0.5, None, weight_decay=0.0)
  >>> params = jnp.array([1.0])
  >>> updates, _ = adamw.update(jnp.array([4.0]), adamw.init(params), params)
  >>> print(updates.round(3))
  [-0.5]
"""

from normjax.optim.optimizers.adagrad_norm import (
    adagrad_unit_norm,
    clipped_adagrad_norm,
)
from normjax.optim.optimizers.adamp import adamp, sgdp
from normjax.optim.optimizers.adamw import adamw
from normjax.optim.optimizers.clipped import clipped_adagrad, clipped_adam
from normjax.optim.optimizers.gradnormlorp import galore, gradnormlorp
from normjax.optim.optimizers.lion import lion
from normjax.optim.optimizers.normuon import normuon
from normjax.optim.optimizers.sgd import sgd
from normjax.optim.optimizers.stable_spam import stable_spam
from normjax.optim.optimizers.subset_norm import subset_norm, subspace_momentum

__all__ = [
    "adagrad_unit_norm",
    "adamp",
    "adamw",
    "clipped_adagrad",
    "clipped_adagrad_norm",
    "clipped_adam",
    "galore",
    "gradnormlorp",
    "lion",
    "normuon",
    "sgd",
    "sgdp",
    "stable_spam",
    "subset_norm",
    "subspace_momentum",
]
