"""Calibration error of densities instead of bins."""

from typing import Any

import numpy as np

from normjax.core.errors import UserError

POINTS = 2**14  # on LOWER..UPPER, of which those in [0, 1] count
LOWER, UPPER = -0.6, 1.6
BLOCK = 64  # points whose densities are summed at a time


def kernel_error(confidence: Any, hits: Any) -> float:
    """KDE-ECE: int |x - accuracy(x)| f(x) dx / int f(x) dx (Zhang et al., 2020).

    f is the density of all confidences, f_1 that of the right ones, and accuracy(x) =
    min(mean(h) f_1(x) / f(x), 1). Triweight kernels 35/32 (1 - v^2)^3 / (3 w), v = (x -
    c) / (3 w), of standard deviation w = std(right ones) (2 N)^(-1/5), with the data
    mirrored at 0 and 1. Integrals by trapezoids on 2^14 points of [-0.6, 1.6].

    Args:
      confidence: [N] in [0, 1].  hits: [N], 0 or 1.

    Raises:
      UserError: right answers of no or of one confidence: no width can be taken.

    Example:
      >>> from normjax import calibration
      >>> error = calibration.kernel_error([0.3, 0.5, 0.7, 0.9], [0, 1, 0, 1])
      >>> round(error, 3)
      0.121
    """
    c, h = (np.asarray(v, np.float64) for v in (confidence, hits))
    right = c[h > 0]
    width = 3 * np.std(right) * (2 * len(c)) ** -0.2 if len(right) else 0.0
    if width == 0:
        raise UserError(
            f"{len(right)} right answers, all of one confidence: no density"
        )
    grid = np.linspace(LOWER, UPPER, POINTS)
    x = grid[(grid >= 0) & (grid <= 1)]
    every, of_right = (_density(x, v, width) for v in (c, right))
    share = h.mean() * of_right / np.where(every > 0, every, 1)
    gap = np.abs(x - np.minimum(share, 1)) * every
    return float(np.trapezoid(gap, x) / np.trapezoid(every, x))


def _density(x: np.ndarray, data: np.ndarray, width: float) -> np.ndarray:
    """Of mirrored data at rising x; kernels end at `width`."""
    mirrored = np.where(data < 0.5, -data, 2 - data)
    points = np.sort(np.concatenate([data, mirrored]))
    total = np.empty_like(x)
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        first, last = np.searchsorted(points, [part[0] - width, part[-1] + width])
        v = (part[:, None] - points[None, first:last]) / width
        kernel = np.maximum(1 - v * v, 0) ** 3
        total[start : start + BLOCK] = kernel.sum(1)
    return np.where((x > 0) & (x < 1), 35 / 16 / width / len(points) * total, 0)
