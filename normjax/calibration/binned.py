"""Calibration errors by bins of confidence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from normjax.core.errors import UserError, one_of


class Reliability(NamedTuple):
    """What is known of each bin of confidence; sums of parts of a data set add up.

    Attributes:
      count: [bins], examples.  confidence, hits: [bins], sums over them.
      examples: of all, those that fall into no bin among them.

    Example:
      >>> from normjax import calibration
      >>> bins = calibration.reliability([0.6, 0.9, 0.95], [1, 0, 1], 2)
      >>> bins.count, bins.hits, bins.examples
      (array([0., 3.]), array([0., 2.]), 3.0)
    """

    count: np.ndarray
    confidence: np.ndarray
    hits: np.ndarray
    examples: float

    def gaps(self) -> np.ndarray:
        """mean confidence - mean hits of each bin that is not empty."""
        full = self.count > 0
        return (self.confidence - self.hits)[full] / self.count[full]


def as_probabilities(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, K] and int [N].

    Raises:
      UserError: other shapes, no example, or a label outside.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or not p.size:
        raise UserError(
            f"probabilities {p.shape} and labels {y.shape}: not [N, K], [N]"
        )
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise UserError(f"a label lies outside of the {p.shape[1]} classes")
    return p, y


def confidence_and_hits(
    probabilities: Any, labels: Any
) -> tuple[np.ndarray, np.ndarray]:
    """max_k p_k, and whether the class with it is the label; the first one of several.

    Args:
      probabilities: [N, K].  labels: int [N].

    Returns:
      float64 [N] and [N] of 0 and 1.

    Raises:
      UserError: shapes that do not fit, no example, or a label outside.

    Example:
      >>> from normjax import calibration
      >>> calibration.confidence_and_hits([[0.25, 0.75], [1.0, 0.0]], [1, 1])
      (array([0.75, 1.  ]), array([1., 0.]))
    """
    p, y = as_probabilities(probabilities, labels)
    return p.max(1), (p.argmax(1) == y).astype(np.float64)


def equal_width_edges(bins: int) -> np.ndarray:
    """j / bins, j = 0..bins.

    Args:
      bins: at least 1.

    Returns:
      [bins + 1].

    Example:
      >>> from normjax import calibration
      >>> calibration.equal_width_edges(4)
      array([0.  , 0.25, 0.5 , 0.75, 1.  ])
    """
    if bins < 1:
        raise UserError(f"bins must be at least 1, got {bins}")
    return np.arange(bins + 1) / bins


CUTS = ("split", "ceil", "interpolated")


def equal_mass_edges(confidence: Any, bins: int, cut: str = "split") -> np.ndarray:
    """Edges between runs of (nearly) as many examples each.

    Args:
      confidence: [N].
      bins: at most N.
      cut: "split": runs of which the first N mod bins are one longer, the edge midway
        between neighbours; "ceil": runs of ceil(N / bins), which may be fewer (both
        after Kumar et al., 2019); "interpolated": the sorted confidence interpolated at
        j N / bins, which leaves the smallest in no bin (Mukhoti et al., 2020).

    Returns:
      [number of bins + 1].

    Raises:
      UserError: more bins than examples, or an unknown cut.

    Example:
      >>> from normjax import calibration
      >>> calibration.equal_mass_edges([0.1, 0.3, 0.5, 0.9], 2)
      array([-inf,  0.4,  inf])
    """
    ordered = np.sort(np.asarray(confidence, np.float64))
    if cut not in CUTS:
        raise UserError(one_of("cut", cut, CUTS))
    if not 1 <= bins <= len(ordered):
        raise UserError(f"bins must lie in 1..{len(ordered)} examples, got {bins}")
    count = len(ordered)
    if cut == "interpolated":
        return np.interp(np.linspace(0, count, bins + 1), np.arange(count), ordered)
    if cut == "split":
        lengths = [len(run) for run in np.array_split(ordered, bins)]
        starts = np.cumsum(lengths)[:-1]
    else:
        length = -(-count // bins)
        starts = np.arange(length, count, length)
    between = (ordered[starts - 1] + ordered[starts]) / 2
    return np.array([-np.inf, *between, np.inf])


def reliability(
    confidence: Any, hits: Any, bins: int | Sequence[float] | np.ndarray = 15
) -> Reliability:
    """Sums over the bins (edge_j, edge_j+1].

    Args:
      confidence, hits: [N], of any kind: of the class that is answered, or the
        probability of one class and whether it is the label.
      bins: number of equally wide ones in (0, 1], or edges that do not fall.

    Example:
      >>> from normjax import calibration
      >>> bins = calibration.reliability([0.4, 0.5, 0.6], [0, 1, 1], 2)
      >>> bins.count, bins.gaps()  # 0.5 belongs to the lower one
      (array([2., 1.]), array([-0.05, -0.4 ]))
    """
    c, h = (np.asarray(v, np.float64) for v in (confidence, hits))
    edges = equal_width_edges(bins) if isinstance(bins, int) else np.asarray(bins)
    place, size = np.searchsorted(edges, c, side="left") - 1, len(edges) - 1
    inside = (place >= 0) & (place < size)
    kept = place[inside]
    count, *sums = (np.bincount(kept, v[inside], size) for v in (np.ones_like(c), c, h))
    return Reliability(count, sums[0], sums[1], float(len(c)))


def expected_error(bins: Reliability) -> float:
    """ECE = sum_b n_b / n |confidence_b - accuracy_b| (Naeini, 2015; Guo et al., 2017).

    Args:
      bins: of `reliability`; edges of `equal_mass_edges` make it the equal-mass ECE.

    Example:
      >>> from normjax import calibration
      >>> calibration.expected_error(calibration.reliability([0.75, 0.25], [1, 0], 4))
      0.25
    """
    return float(np.abs(bins.confidence - bins.hits).sum() / bins.examples)


def maximum_error(bins: Reliability) -> float:
    """MCE = max_b |confidence_b - accuracy_b| over bins that are not empty.

    After Naeini et al. (2015).

    Args:
      bins: of `reliability`.

    Example:
      >>> from normjax import calibration
      >>> calibration.maximum_error(calibration.reliability([0.75, 0.125], [1, 0], 4))
      0.25
    """
    return float(np.abs(bins.gaps()).max(initial=0.0))


def average_error(bins: Reliability) -> float:
    """Mean of |confidence_b - accuracy_b| over bins that are not empty.

    Some call it ACE, as they do `adaptive_error` (Neumann et al., 2018).

    Args:
      bins: of `reliability`.

    Example:
      >>> from normjax import calibration
      >>> calibration.average_error(calibration.reliability([0.75, 0.125], [1, 0], 4))
      0.1875
    """
    gaps = np.abs(bins.gaps())
    return float(gaps.mean()) if len(gaps) else 0.0


def root_mean_square_error(bins: Reliability) -> float:
    """sqrt(sum_b n_b / n (confidence_b - accuracy_b)^2) (Hendrycks et al., 2019).

    Args:
      bins: of `reliability`.

    Example:
      >>> from normjax import calibration
      >>> calibration.root_mean_square_error(calibration.reliability([0.75], [1], 4))
      0.25
    """
    share = bins.count[bins.count > 0] / bins.examples
    return float(np.sqrt((share * np.square(bins.gaps())).sum()))
