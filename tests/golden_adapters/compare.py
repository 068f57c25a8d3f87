"""Comparison of arrays by their largest entry."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Allowed errors relative to the largest entry of the expected array.

    Attributes:
      dtype: that the module runs in.  value, gradient: allowed relative errors.
    """

    dtype: str
    value: float
    gradient: float


def close(name: str, actual, expected, tolerance: float, scale: float = 0.0) -> None:
    """Assert |actual - expected| <= tolerance * max(|expected|, scale)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    size = max(np.abs(expected).max(initial=0.0), scale)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= tolerance * max(size, 1e-30), f"{name}: {error} of {size}"
