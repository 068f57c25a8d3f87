"""Proper scores, and the risk of answering the most confident part alone."""

from typing import Any

import numpy as np

from normjax.calibration.binned import as_probabilities


def brier_score(probabilities: Any, labels: Any) -> float:
    """Mean over examples of sum_k (p_k - [y = k])^2 (Brier, 1950).

    Some divide it by K as well.

    Args:
      probabilities: [N, K].  labels: int [N].

    Raises:
      UserError: shapes that do not fit, no example, or a label outside.

    Example:
      >>> from normjax import calibration
      >>> calibration.brier_score([[0.5, 0.5], [0.0, 1.0]], [0, 1])
      0.25
    """
    p, y = as_probabilities(probabilities, labels)
    return float(np.square(p - np.eye(p.shape[1])[y]).sum(1).mean())


def negative_log_likelihood(logits: Any, labels: Any) -> float:
    """Mean of -log softmax(z)_y, nats.

    Args:
      logits: z, [N, K]; log probabilities are as good.  labels: int [N].

    Raises:
      UserError: shapes that do not fit, no example, or a label outside.

    Example:
      >>> from normjax import calibration
      >>> round(calibration.negative_log_likelihood([[1.0, 1.0]], [0]), 4)
      0.6931
    """
    z, y = as_probabilities(logits, labels)
    shifted = z - z.max(1, keepdims=True)
    own = np.take_along_axis(shifted, y[:, None], 1)[:, 0]
    return float((np.log(np.exp(shifted).sum(1)) - own).mean())


def risk_coverage(confidence: Any, hits: Any) -> float:
    """AURC = mean_j (errors among the j most confident) / j (Geifman et al., 2019).

    Args:
      confidence, hits: [N].

    Example:
      >>> from normjax import calibration
      >>> calibration.risk_coverage([0.9, 0.8], [1, 0])
      0.25
    """
    c, h = (np.asarray(v, np.float64) for v in (confidence, hits))
    wrong = 1 - h[np.argsort(-c, kind="stable")]
    return float((np.cumsum(wrong) / np.arange(1, len(c) + 1)).mean())


def excess_risk_coverage(confidence: Any, hits: Any) -> float:
    """E-AURC: `risk_coverage` less that of the best order (Geifman et al., 2019).

    Of w errors among N the best has (1 / N) sum_{i=1..w} i / (N - w + i).

    Args:
      confidence, hits: [N].

    Example:
      >>> from normjax import calibration
      >>> calibration.excess_risk_coverage([0.9, 0.8], [1, 0])
      0.0
    """
    h = np.asarray(hits, np.float64)
    wrong, count = round((1 - h).sum()), len(h)
    ranks = np.arange(1, wrong + 1)
    best = (ranks / (count - wrong + ranks)).sum() / count
    return risk_coverage(confidence, hits) - float(best)
