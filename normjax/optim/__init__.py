"""Optimizers: a schedule, a gradient transformation, which parameters take part."""

from normjax.optim.build import OPTIMIZERS, build, learning_rate

__all__ = ["OPTIMIZERS", "build", "learning_rate"]
