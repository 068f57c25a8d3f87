"""Test-time adaptation: pure functions of what a trained network meets.

Norms with other statistics (alpha-BN, UnMix-TNS) and probabilities of a batch corrected
by each other (LAME). `ADAPTATIONS` are these as methods for whole models over a stream
of batches. Beside them: similarities of retrieval, normalised by banks (DBNorm).
"""

from normjax.adapt.hubness import (
    activation_set,
    dual_softmax,
    dynamic_inverted_softmax,
    inverted_softmax,
    is_activated,
    k_occurrence,
    skewness,
)
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
    "activation_set",
    "affinity",
    "alpha_batch_normalize",
    "dual_softmax",
    "dynamic_inverted_softmax",
    "inverted_softmax",
    "is_activated",
    "k_occurrence",
    "laplacian_adjusted",
    "linear_affinity",
    "nearest_affinity",
    "radial_affinity",
    "skewness",
    "split_components",
    "unmix_normalize",
]
