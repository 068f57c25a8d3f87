"""Optimizers: a schedule, a gradient transformation, which parameters take part.

`OPTIMIZERS`, `SCHEDULES` and `TRANSFORMATIONS` are the tables of all of them.
"""

from normjax.core.layer_decay import layer_decay
from normjax.optim import optimizers, schedules
from normjax.optim.base import OPTIMIZERS, SCHEDULES, TRANSFORMATIONS
from normjax.optim.build import build, learning_rate, roles, updates_made
from normjax.optim.groups import Group
from normjax.optim.transformations import (
    adaptive_clip,
    clip_by_global_norm,
    normalize_and_project,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "TRANSFORMATIONS",
    "Group",
    "adaptive_clip",
    "build",
    "clip_by_global_norm",
    "layer_decay",
    "learning_rate",
    "normalize_and_project",
    "optimizers",
    "roles",
    "schedules",
    "updates_made",
]
