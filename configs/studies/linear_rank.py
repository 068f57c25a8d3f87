"""The rank of attention maps, and what restores that of linear attention.

    python -m normjax.study linear_rank --workdir=runs/linear_rank

The map from values to outputs of one head with 32 channels over 14 x 14 tokens, drawn
at random: its numerical rank, singular values above 1e-4 of the largest, as a share of
the 196 tokens. In float64.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from normjax.study.claims import Claim

SIDE, CHANNELS, LIMIT = 14, 32, 1e-4
MAPS = ("softmax", "linear", "linear + depthwise convolution")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    softmax, linear, repaired = ((name, "rank") for name in MAPS)
    return {
        "title": "rank of an attention map / tokens",
        "rows": "attention",
        "metric": "rank",
        "runs": {(name, "rank"): _ranked(name) for name in MAPS},
        "claims": (
            Claim(
                "The map of linear attention has at most the rank of its channels.",
                "FLatten (Han et al., 2023)",
                "rank at most d, 54 of 196 in DeiT-T",
                CHANNELS / SIDE**2 + 1e-9,
                linear,
            ),
            Claim(
                "Softmax attention has more.",
                "FLatten (Han et al., 2023)",
                "full rank",
                softmax,
                linear,
            ),
            Claim(
                "A depthwise convolution of the values restores full rank.",
                "FLatten (Han et al., 2023)",
                "full rank, 196",
                repaired,
                1.0,
                margin=0.02,
                equal=True,
            ),
        ),
    }


def _ranked(name: str) -> Callable[[int, Path], Mapping[str, float]]:
    def measure(seed: int, folder: Path) -> Mapping[str, float]:
        import numpy as np

        rng = np.random.default_rng(seed)
        q, k = rng.normal(size=(2, SIDE**2, CHANNELS))
        if name == "softmax":
            scores = q @ k.T
            scores = np.exp(scores - scores.max(1, keepdims=True))
        else:
            scores = np.maximum(q, 0) @ np.maximum(k, 0).T
        total = scores / (scores.sum(1, keepdims=True) + 1e-6)
        if name == MAPS[-1]:
            total = total + _convolution(rng.normal(size=(5, 5)) / 5)
        values = np.linalg.svd(total, compute_uv=False)
        return {"rank": float(np.mean(values > LIMIT * values[0]))}

    return measure


def _convolution(kernel: Any) -> Any:
    """The matrix of a convolution over the map, zeros around it."""
    import numpy as np

    matrix = np.zeros((SIDE, SIDE, SIDE, SIDE))
    half = len(kernel) // 2
    for y, x in np.ndindex(SIDE, SIDE):
        for dy, dx in np.ndindex(kernel.shape):
            row, column = y + dy - half, x + dx - half
            if 0 <= row < SIDE and 0 <= column < SIDE:
                matrix[y, x, row, column] = kernel[dy, dx]
    return matrix.reshape(SIDE**2, SIDE**2)
