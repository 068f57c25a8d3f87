"""Tables and kernels for another size, as pure functions of NumPy arrays.

They compute in float64 and give float32, and agree with what timm makes of the same
arrays.
"""

import math

import numpy as np

_CUBIC = -0.5  # of the cubic convolution that Pillow and antialiasing PyTorch use


def resize_matrix(old: int, new: int) -> np.ndarray:
    """Weights of antialiased bicubic resizing along one axis: [new, old].

    Row i weighs the samples around (i + 1/2) old / new - 1/2 by the cubic convolution
    kernel with a = -1/2, which is as much wider as the axis shrinks; weights beyond the
    edge go, and the rest sums to 1.
    """
    scale = old / new
    wide = max(scale, 1.0)
    centers = (np.arange(new)[:, None] + 0.5) * scale
    away = (np.arange(old)[None] + 0.5 - centers) / wide
    x = np.abs(away)
    near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


def resize_grid(grid: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A map of vectors [H, W, C] for another grid: [*size, C], bicubic, antialiased.

    As ViT's tables of positions are resized (timm's `resample_abs_pos_embed`).
    """
    rows, columns = (resize_matrix(*p) for p in zip(grid.shape, size, strict=False))
    wide = np.einsum(
        "yh,hwc,xw->yxc", rows, np.asarray(grid, np.float64), columns, optimize=True
    )
    return wide.astype(np.float32)


def resize_offsets(table: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A table of relative positions [2h - 1, 2w - 1, heads] for another window.

    Old offsets are laid out as 0, 1, 1 + q, 1 + q + q**2, ... on either side, q so that
    they reach as far as the new ones, between which the result is linear: neighbours
    keep their biases, and far ones are stretched (BEiT, Bao et al., 2022; timm's
    `resize_rel_pos_bias_table`).

    Args:
      size: (2h' - 1, 2w' - 1).
    """
    wide = np.asarray(table, np.float64)
    for axis, new in enumerate(size):
        wide = _along(wide, axis, new)
    return wide.astype(np.float32)


def _along(table: np.ndarray, axis: int, new: int) -> np.ndarray:
    """`table` with `new` offsets along `axis`."""
    old = table.shape[axis]
    if old == new:
        return table
    steps = _ratio(old // 2, new // 2) ** np.arange(old // 2)
    side = np.cumsum(steps)
    places = np.concatenate([-side[::-1], [0.0], side])
    wanted = np.arange(new) - new // 2
    right = np.clip(np.searchsorted(places, wanted), 1, old - 1)
    span = places[right] - places[right - 1]
    share = np.clip((wanted - places[right - 1]) / span, 0.0, 1.0)
    shape = [-1 if i == axis else 1 for i in range(table.ndim)]
    share = share.reshape(shape)
    left, right = (np.take(table, i, axis) for i in (right - 1, right))
    return (1 - share) * left + share * right


def _ratio(old: int, new: int) -> float:
    """q in [1.01, 1.5] whose series of `old` terms is `new`, to within 1e-6."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**old) / (1 - q) > new else (q, high)
    return q


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution [h, w, I, O] for images of other channels: [h, w, n, O].

    One channel gets the sum of all; more of them get the I in turn, times I / n, so
    that the same image in each gives the same result (timm's `adapt_input_conv`).
    """
    wide, old = np.asarray(kernel, np.float64), kernel.shape[2]
    if channels == 1:
        return wide.sum(2, keepdims=True).astype(np.float32)
    turns = np.arange(channels) % old
    return (wide[:, :, turns] * (old / channels)).astype(np.float32)


def resize_patches(kernel: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A patch embedding [h, w, I, O] for patches of another size: [*size, I, O].

    What it gives for resized patches is nearest, in the least squares over all patches,
    to what it gave for the patches (FlexiViT, Beyer et al., 2023).
    """
    matrices = (resize_matrix(*p) for p in zip(kernel.shape, size, strict=False))
    resize = np.kron(*matrices)  # [new, old], over rows of pixels
    flat = np.asarray(kernel, np.float64).reshape(math.prod(kernel.shape[:2]), -1)
    new = np.linalg.pinv(resize.T) @ flat
    return new.reshape(*size, *kernel.shape[2:]).astype(np.float32)
