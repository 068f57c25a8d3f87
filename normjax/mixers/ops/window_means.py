"""Means over the windows of a map."""

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers.ops.heads import split_heads
from normjax.mixers.ops.partition import overlapping

AVERAGES = ("code", "paper")
"""How FaViT averages over windows: as its code, as its paper."""


def window_means(
    x: jax.Array, side: int, dilation: int, num_heads: int, averaging: str
) -> jax.Array:
    """One window that is the mean of all: [B, H, W, D] -> [B, w, w, heads, K].

    Windows of w x w positions, `dilation` apart, lie side by side; the map is reflected
    on the right and below to hold whole ones (FaViT; Qin et al., 2023). "paper" is the
    mean over windows of every channel. "code" writes the K channels of a head one
    window after the other in one row, and averages so many neighbours in it as there
    are windows.

    Args:
      side: w.  averaging: one of `AVERAGES`.

    Raises:
      UserError: a map that is too small to be reflected, or heads that do not split.
    """
    span, grid = dilation * (side - 1) + 1, x.shape[1:3]
    lack = [-n % span for n in grid]
    if side < 1 or any(more >= n for more, n in zip(lack, grid, strict=True)):
        raise UserError(
            f"a grid of {grid[0]}x{grid[1]} is too small to be reflected into windows "
            f"of {span}x{span}"
        )
    x = jnp.pad(x, ((0, 0), (0, lack[0]), (0, lack[1]), (0, 0)), mode="reflect")
    windows = overlapping(x, (side, side), (span, span), dilation)
    windows = windows.reshape(len(x), -1, side, side, x.shape[-1])
    rows = split_heads(at_least_float32(windows), num_heads)
    if averaging == "code":
        # [B, w, w, heads, windows * K], cut into K runs.
        rows = jnp.moveaxis(rows, 1, -2)
        rows = rows.reshape(*rows.shape[:-2], rows.shape[-1], rows.shape[-2])
        return jnp.mean(rows, -1).astype(x.dtype)
    return jnp.mean(rows, 1).astype(x.dtype)
