"""Temperature scaling: one number that mends overconfidence and keeps all answers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from normjax.calibration.binned import as_probabilities
from normjax.core.errors import UserError

STEPS = 200


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def fit_temperature(logits: Any, labels: Any) -> float:
    """argmin_T of the mean cross entropy of softmax(z / T) (Guo et al., 2017).

    It is convex in u = 1 / T: the root of its slope sum_k p_k z_k - z_y is found by
    Newton's method between bounds, to the last digits. Fit it on validation data.

    Args:
      logits: z, [N, K].  labels: int [N].

    Raises:
      UserError: shapes as `confidence_and_hits`, or no such T: every answer is right
        (T would be 0), or the logits say nothing of the labels (T would be infinite).

    Example:
      >>> import numpy as np
      >>> from normjax import calibration
      >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> temperature = calibration.fit_temperature(logits, [0, 0, 1, 1])
      >>> round(temperature, 4)  # three of four are right: softmax is 0.75
      1.8205
    """
    z, y = as_probabilities(logits, labels)
    z = z - np.take_along_axis(z, y[:, None], 1)  # the slope is the mean of z then

    def slopes(u: float) -> tuple[float, float]:
        """First and second derivative at u."""
        p = softmax(u * z)
        mean = (p * z).sum(1)
        return float(mean.mean()), float(
            (p * np.square(z)).sum(1).mean() - (mean**2).mean()
        )

    if z.max() <= 0:
        raise UserError("no temperature: every answer is right, so colder is better")
    if z.mean() >= 0:  # the slope at u = 0
        raise UserError("no temperature: the logits say nothing of the labels")
    low, high = 1.0, 1.0
    while slopes(low)[0] > 0:
        low /= 2
    while slopes(high)[0] < 0:
        high *= 2
    u = np.sqrt(low * high)
    for _ in range(STEPS):
        slope, curvature = slopes(u)
        low, high = (low, u) if slope > 0 else (u, high)
        new = u - slope / curvature if curvature > 0 else low
        new = new if low < new < high else (low + high) / 2
        if abs(new - u) <= 1e-15 * u:
            break
        u = new
    return float(1 / u)


def scan_temperature(
    logits: Any,
    labels: Any,
    score: Callable[[np.ndarray, np.ndarray], float],
) -> float:
    """The first T of 0.1, 0.2, ... 10.0 with the least score (Mukhoti et al., 2020).

    T is added up in steps of 0.1, as there.

    Args:
      logits: z, [N, K].  labels: int [N].
      score: (softmax(z / T) [N, K], labels) -> less is better; such as an ECE.

    Raises:
      UserError: shapes as `confidence_and_hits`.

    Example:
      >>> import numpy as np
      >>> from normjax import calibration
      >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> score = calibration.brier_score
      >>> round(calibration.scan_temperature(logits, [0, 0, 1, 1], score), 3)
      1.8
    """
    z, y = as_probabilities(logits, labels)
    temperature, best, least = 0.1, 0.1, np.inf
    for _ in range(100):
        found = score(softmax(z / temperature), y)
        if found < least:
            best, least = temperature, found
        temperature += 0.1
    return best
