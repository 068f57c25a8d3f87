"""Comparison of arrays by their largest entry."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Allowed errors relative to the largest entry of the expected array.

    Attributes:
      dtype: that the module runs in.  value, gradient: allowed relative errors.
      each: whether the gradient of a parameter is measured by its own largest entry,
        not by that of all parameters.
    """

    dtype: str
    value: float
    gradient: float
    each: bool = False


# Relative errors of 1e-6 and 1e-4 are asked for. Layers: forward, gradient. Models:
# absolute errors of the logits, unfolded and folded. bfloat16 has 8 bits, and
# parameters and inputs are rounded as well.
COARSE = Tolerance("bfloat16", 5e-2, 1e-1)
NORMS = (
    Tolerance("float64", 1e-6, 1e-6),
    Tolerance("float32", 1e-4, 1e-4),
    COARSE,
)
LAYERS = (
    Tolerance("float64", 1e-9, 1e-8),
    Tolerance("float32", 1e-5, 1e-4),
    COARSE,
)
WEIGHTS = (
    Tolerance("float64", 1e-9, 1e-8, each=True),
    Tolerance("float32", 1e-5, 1e-4, each=True),
    COARSE,
)
MODELS = (
    Tolerance("float64", 1e-9, 1e-9),
    Tolerance("float32", 3e-5, 3e-5),
    COARSE,
)


def close(name: str, actual, expected, tolerance: float, scale: float = 0.0) -> None:
    """Assert |actual - expected| <= tolerance * max(|expected|, scale)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
    size = max(np.abs(expected).max(initial=0.0), scale)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= tolerance * max(size, 1e-30), f"{name}: {error} of {size}"
