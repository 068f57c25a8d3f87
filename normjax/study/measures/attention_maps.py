"""The rank of attention maps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normjax.core.errors import UserError, one_of

SIDE, CHANNELS, KERNEL, LIMIT = 14, 32, 5, 1e-4
KINDS = ("softmax", "linear", "linear + depthwise convolution")


def attention_rank(seed: int, folder: Path, attention: str) -> Mapping[str, float]:
    """Numerical rank of the map from values to outputs, as a share of the tokens.

    One head of 32 channels over 14 x 14 tokens, queries and keys normal, in float64;
    singular values above 1e-4 of the largest count. Linear attention has the features
    relu(q), relu(k); the convolution has 5 x 5 weights of standard deviation 0.2.

    Args:
      seed: of queries, keys and weights.  folder: not used.
      attention: softmax, linear, or "linear + depthwise convolution".

    Raises:
      UserError: another attention.
    """
    if attention not in KINDS:
        raise UserError(one_of("attention", attention, KINDS))
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, SIDE**2, CHANNELS))
    if attention == "softmax":
        scores = q @ k.T
        scores = np.exp(scores - scores.max(1, keepdims=True))
    else:
        scores = np.maximum(q, 0) @ np.maximum(k, 0).T
    total = scores / (scores.sum(1, keepdims=True) + 1e-6)
    if attention == KINDS[-1]:
        total = total + _convolution(rng.normal(size=(KERNEL, KERNEL)) / KERNEL)
    values = np.linalg.svd(total, compute_uv=False)
    return {"rank": float(np.mean(values > LIMIT * values[0]))}


def _convolution(kernel: np.ndarray) -> np.ndarray:
    """The matrix of a convolution over the map, zeros around it."""
    matrix = np.zeros((SIDE, SIDE, SIDE, SIDE))
    half = len(kernel) // 2
    for y, x in np.ndindex(SIDE, SIDE):
        for dy, dx in np.ndindex(kernel.shape):
            row, column = y + dy - half, x + dx - half
            if 0 <= row < SIDE and 0 <= column < SIDE:
                matrix[y, x, row, column] = kernel[dy, dx]
    return matrix.reshape(SIDE**2, SIDE**2)
