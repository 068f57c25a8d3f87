"""Calibration errors of every class, and those that sort instead of binning."""

from typing import Any

import numpy as np

from normjax.calibration.binned import as_probabilities, expected_error, reliability
from normjax.core.errors import UserError


def classwise_error(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """Mean over classes of the ECE of (p_k, [y = k]); static calibration error.

    After Nixon et al. (2019) and Kull et al. (2019). Over all K of `probabilities`;
    code that takes the largest label + 1 for K differs where classes are absent.

    Args:
      probabilities: [N, K].  labels: int [N].  bins: equally wide.

    Raises:
      UserError: shapes that do not fit, no example, or a label outside.

    Example:
      >>> from normjax import calibration
      >>> calibration.classwise_error([[0.25, 0.75], [0.25, 0.75]], [1, 1], 4)
      0.25
    """
    p, y = as_probabilities(probabilities, labels)
    each = (
        expected_error(reliability(p[:, k], y == k, bins)) for k in range(p.shape[1])
    )
    return float(np.mean(list(each)))


def adaptive_error(
    probabilities: Any,
    labels: Any,
    bins: int = 15,
    threshold: float | None = None,
) -> float:
    """ACE: gaps of runs of as many examples each, class by class (Nixon et al., 2019).

    Per class p_k is sorted and cut into `bins` runs of floor(m / bins), the last one
    with the rest: sum_runs |sum (p_k - [y = k])| / (N K).

    Args:
      probabilities: [N, K].  labels: int [N].
      bins: runs a class.
      threshold: of TACE; what is not above it is left out first (1e-3 in the paper);
        None keeps all.

    Raises:
      UserError: fewer examples of a class than runs; shapes as `confidence_and_hits`.

    Example:
      >>> from normjax import calibration
      >>> calibration.adaptive_error([[0.25, 0.75], [0.5, 0.5]], [1, 1], bins=2)
      0.375
    """
    p, y = as_probabilities(probabilities, labels)
    total = 0.0
    for k in range(p.shape[1]):
        kept = (
            np.arange(len(p)) if threshold is None else (p[:, k] > threshold).nonzero()
        )
        order = np.ravel(kept)
        order = order[np.argsort(p[order, k], kind="stable")]
        length = len(order) // bins
        if not length:
            raise UserError(
                f"class {k} has {len(order)} probabilities for {bins} runs: fewer bins"
            )
        gaps = p[order, k] - (y[order] == k)
        runs = np.add.reduceat(gaps, length * np.arange(bins))
        total += np.abs(runs).sum()
    return float(total / p.size)


def kolmogorov_smirnov_error(confidence: Any, hits: Any) -> float:
    """max_j |sum of (c - h) over the j least confident| / N (Gupta et al., 2021).

    Args:
      confidence, hits: [N].

    Example:
      >>> from normjax import calibration
      >>> calibration.kolmogorov_smirnov_error([0.75, 0.25], [1, 0])
      0.125
    """
    c, h = (np.asarray(v, np.float64) for v in (confidence, hits))
    order = np.argsort(c, kind="stable")
    return float(np.abs(np.cumsum((c - h)[order])).max() / len(c))
