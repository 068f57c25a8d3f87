"""Optimizers: a schedule, a gradient transformation, which parameters take part."""

from normjax.optim.build import OPTIMIZERS, build, learning_rate, updates_made
from normjax.optim.clip import adaptive_clip
from normjax.optim.project import normalize_and_project

__all__ = [
    "OPTIMIZERS",
    "adaptive_clip",
    "build",
    "learning_rate",
    "normalize_and_project",
    "updates_made",
]
