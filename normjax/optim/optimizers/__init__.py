"""Optimizers, each in the file of its key.

Example:
  >>> import jax.numpy as jnp
  >>> from normjax.optim import optimizers
  >>> adamw = optimizers.adamw(lambda step: 0.5, None, weight_decay=0.0)
  >>> params = jnp.array([1.0])
  >>> updates, _ = adamw.update(jnp.array([4.0]), adamw.init(params), params)
  >>> print(updates.round(3))
  [-0.5]
"""

from normjax.optim.optimizers.adamw import adamw
from normjax.optim.optimizers.lion import lion
from normjax.optim.optimizers.sgd import sgd

__all__ = ["adamw", "lion", "sgd"]
