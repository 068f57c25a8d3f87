"""How far the confidence of a classifier is from how often it is right.

Functions of probabilities [N, K] and labels [N] on the host, in float64: errors by bins
of confidence, by classes, without bins, proper scores, temperature scaling, and the
risk of answering the most confident part alone.
"""

from normjax.calibration.adaptive import (
    adaptive_error,
    classwise_error,
    kolmogorov_smirnov_error,
)
from normjax.calibration.binned import (
    Reliability,
    average_error,
    confidence_and_hits,
    equal_mass_edges,
    equal_width_edges,
    expected_error,
    maximum_error,
    reliability,
    root_mean_square_error,
)
from normjax.calibration.diagram import draw_reliability
from normjax.calibration.kernel import kernel_error
from normjax.calibration.scores import (
    brier_score,
    excess_risk_coverage,
    negative_log_likelihood,
    risk_coverage,
)
from normjax.calibration.temperature import fit_temperature, scan_temperature

__all__ = [
    "Reliability",
    "adaptive_error",
    "average_error",
    "brier_score",
    "classwise_error",
    "confidence_and_hits",
    "draw_reliability",
    "equal_mass_edges",
    "equal_width_edges",
    "excess_risk_coverage",
    "expected_error",
    "fit_temperature",
    "kernel_error",
    "kolmogorov_smirnov_error",
    "maximum_error",
    "negative_log_likelihood",
    "reliability",
    "risk_coverage",
    "root_mean_square_error",
    "scan_temperature",
]
