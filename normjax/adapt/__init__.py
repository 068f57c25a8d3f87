"""Test-time adaptation: pure functions of what a trained network meets.

Norms with other statistics (alpha-BN, UnMix-TNS) and probabilities of a batch corrected
by each other (LAME). `ADAPTATIONS` are these as methods for whole models over a stream
of batches.
"""

from normjax.adapt.lame import (
    AFFINITIES,
    affinity,
    laplacian_adjusted,
    linear_affinity,
    nearest_affinity,
    radial_affinity,
)
from normjax.adapt.methods import ADAPTATIONS, Adaptation
from normjax.adapt.statistics import (
    alpha_batch_normalize,
    split_components,
    unmix_normalize,
)

__all__ = [
    "ADAPTATIONS",
    "AFFINITIES",
    "Adaptation",
    "affinity",
    "alpha_batch_normalize",
    "laplacian_adjusted",
    "linear_affinity",
    "nearest_affinity",
    "radial_affinity",
    "split_components",
    "unmix_normalize",
]
