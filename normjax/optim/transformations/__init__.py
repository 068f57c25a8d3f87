"""Transformations of gradients and of updates, each in the file of its key."""

from normjax.optim.transformations.adaptive_clip import adaptive_clip
from normjax.optim.transformations.clip_by_global_norm import clip_by_global_norm
from normjax.optim.transformations.component_clip import component_clip
from normjax.optim.transformations.keep_zeros import keep_zeros
from normjax.optim.transformations.normalize_and_project import normalize_and_project
from normjax.optim.transformations.random_entries import random_entries

__all__ = [
    "adaptive_clip",
    "clip_by_global_norm",
    "component_clip",
    "keep_zeros",
    "normalize_and_project",
    "random_entries",
]
