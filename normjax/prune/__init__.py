"""Pruning: which weights go, and runs that begin with pruned weights.

`python -m normjax.prune` writes such a run; `configs/perp.py` retrains its norms and
biases.
"""

from normjax.prune.magnitude import Pruned, magnitude_pruned
from normjax.prune.masks import (
    input_squares,
    smallest,
    smallest_in_groups,
    wanda_scores,
)
from normjax.prune.selective import activated, activation_count, globally_pruned

__all__ = [
    "Pruned",
    "activated",
    "activation_count",
    "globally_pruned",
    "input_squares",
    "magnitude_pruned",
    "smallest",
    "smallest_in_groups",
    "wanda_scores",
]
