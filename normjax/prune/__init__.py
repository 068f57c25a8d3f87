"""Pruning by magnitude, and runs that begin with pruned weights.

`python -m normjax.prune` writes such a run; `configs/perp.py` retrains its norms and
biases.
"""

from normjax.prune.magnitude import Pruned, magnitude_pruned

__all__ = ["Pruned", "magnitude_pruned"]
