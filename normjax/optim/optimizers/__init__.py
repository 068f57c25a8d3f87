"""Optimizers, each in the file of its key."""

from normjax.optim.optimizers.adamw import adamw
from normjax.optim.optimizers.lion import lion
from normjax.optim.optimizers.sgd import sgd

__all__ = ["adamw", "lion", "sgd"]
