"""Unified Normalization in float64 NumPy, forward and gradient, and its rows."""

import numpy as np

from tests.norms.power_rows import valid_rows
from tests.norms.row import Row


def constants(kwargs):
    defaults = {
        "window": 4,
        "gradient_window": 4,
        "warmup_steps": 4000,
        "filter_outliers": False,
        "rescale_after": 1000,
        "momentum": 0.9,
        "epsilon": 1e-5,
    }
    return {**defaults, **kwargs}


def geometric_mean(window):
    return np.prod(window, 0) ** (1 / len(window))


def measure(x, stats, mask, c):
    """(what divides x, r, window after this batch, skipped) or None if empty."""
    rows = valid_rows(x, mask)
    if not len(rows):
        return None
    k, size, phi = int(stats["step"]) + 1, c["window"], stats["phi"]
    x2, window = (rows**2).mean(0), stats["window"].copy()
    spread = np.sqrt(window).var(ddof=1)
    window[k % size] = x2
    skipped = size <= 1
    gap = window.mean(0) - geometric_mean(window)
    filtering = c["filter_outliers"] and k >= c["warmup_steps"]
    if filtering and np.any(gap > spread * size):
        window[k % size], skipped = phi, True
    plain = k <= size or k < c["warmup_steps"] or skipped
    square = x2 if plain else geometric_mean(window)
    r = np.ones_like(phi)
    if k > max(c["rescale_after"], c["warmup_steps"]) and not skipped:
        r = np.sqrt(square + c["epsilon"]) / np.sqrt(phi + c["epsilon"])
    return square, np.clip(r, 1 / 5, 5), window, skipped


def unified_norm(x, params, stats, mask, train, kwargs):
    c, new = constants(kwargs), stats
    square = stats["phi"]
    measured = measure(x, stats, mask, c) if train else None
    if measured is not None:
        square, _, window, skipped = measured
        new = {
            "phi": c["momentum"] * stats["phi"] + (1 - c["momentum"]) * square,
            "window": window,
            "skipped": stats["skipped"] + int(skipped and c["window"] > 1),
            "step": stats["step"] + 1,
        }
    y = x / np.sqrt(square + c["epsilon"])
    return y * params.get("scale", 1.0) + params.get("bias", 0.0), new


def unified_norm_gradient(x, dy, params, stats, overwrite, mask, kwargs):
    c, axes = constants(kwargs), tuple(range(x.ndim - 1))
    square, r, _, skipped = measure(x, stats, mask, c)
    k, size, m = int(stats["step"]) + 1, c["gradient_window"], c["momentum"]
    root = np.sqrt(square + c["epsilon"])
    z, q = x / root, dy * params.get("scale", 1.0) * r
    g = (q * z).mean(axes)
    window, nu = overwrite["window"].copy(), overwrite["nu"]
    window[k % size] = nu if skipped else g
    plain = k <= size or k < c["warmup_steps"] or skipped
    mean_g = g if plain else window.mean(0)
    nu = m * nu + (1 - m) * mean_g
    dx = (q - (mean_g if skipped else nu) * z) / root
    dparams = {"scale": (dy * r * z).sum(axes), "bias": dy.sum(axes)}
    return dx, {k: dparams[k] for k in params}, {"window": window, "nu": nu}


ROWS = [
    Row(
        "unified_norm",
        unified_norm,
        kwargs,
        shape=shape,
        stats={"step": step, "skipped": 3},
        large_mean=False,
        gradient=unified_norm_gradient,
    )
    for step, shape, kwargs in (
        (9, (4, 7, 6), {"warmup_steps": 5, "rescale_after": 8}),
        (2, (4, 7, 6), {"warmup_steps": 0, "window": 3, "gradient_window": 2}),
        (6, (4, 3, 5, 6), {"use_bias": False, "momentum": 0.5}),
        (8, (4, 7, 6), {"warmup_steps": 0, "filter_outliers": True}),
        (8, (4, 7, 6), {"warmup_steps": 9, "rescale_after": 2, "window": 1}),
    )
]
