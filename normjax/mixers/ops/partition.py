"""Maps cut into parts, put together again, stretched and pooled."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.accumulate import einsum
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers.ops.heads import tokens_of


def partition(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """[B, H, W, ...] -> [B * n, h, w, ...]: all n windows of the first image first.

    Raises:
      UserError: the windows do not cover the grid.
    """
    batch, height, width = x.shape[:3]
    h, w = window
    if height % h or width % w:
        raise UserError(f"windows of {h}x{w} do not cover a grid of {height}x{width}")
    x = x.reshape(batch, height // h, h, width // w, w, *x.shape[3:])
    return jnp.swapaxes(x, 2, 3).reshape(-1, h, w, *x.shape[5:])


def merge(x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """The inverse of `partition`: [B * n, h, w, ...] -> [B, H, W, ...]."""
    h, w = x.shape[1:3]
    height, width = grid
    x = x.reshape(-1, height // h, width // w, h, w, *x.shape[3:])
    return jnp.swapaxes(x, 2, 3).reshape(-1, height, width, *x.shape[5:])


def shifted_regions(
    grid: tuple[int, ...], window: tuple[int, int], shift: int
) -> np.ndarray:
    """Which positions of a window are neighbours in the image before the shift.

    Returns:
      int [n, h * w]: a label for each position of each of the n windows.
    """
    labels = np.zeros((1, *grid), int)
    for axis, size in enumerate(window):
        place = np.arange(grid[axis])
        border = grid[axis] - size, grid[axis] - shift
        part = (place >= border[0]).astype(int) + (place >= border[1])
        labels = 3 * labels + np.expand_dims(part, (0, 2 - axis))
    h, w = window
    labels = labels.reshape(grid[0] // h, h, grid[1] // w, w)
    return labels.swapaxes(1, 2).reshape(-1, h * w)


def stretched(v: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """v [B, H', W', D] on another grid, interpolated along its flattened positions.

    One-dimensional and with half-pixel centres: that is what SLAB and FLatten trained
    with, though neighbours in the map are no neighbours in the sequence.
    """
    batch, height, width, channels = v.shape
    if (height, width) == grid:
        return v
    old, new = height * width, grid[0] * grid[1]
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = centres.astype(int)
    right, weight = np.minimum(left + 1, old - 1), jnp.asarray(centres - left, v.dtype)
    weight, v = weight.reshape(1, -1, 1), tokens_of(v)
    return (v[:, left] * (1 - weight) + v[:, right] * weight).reshape(
        batch, *grid, channels
    )


def pooled(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, s, s, C] in at least float32: averages over bins.

    Bin i of H rows goes from floor(i H / s) to ceil((i + 1) H / s), columns likewise.
    """
    x = at_least_float32(x)
    rows, columns = (jnp.asarray(_bins(n, side), x.dtype) for n in x.shape[1:3])
    x = einsum("sh,bhwc->bswc", rows, x)
    return einsum("tw,bswc->bstc", columns, x)


def _bins(size: int, count: int) -> np.ndarray:
    """[count, size], the weights of `size` positions in each bin."""
    weights = np.zeros((count, size))
    for i in range(count):
        first, last = i * size, (i + 1) * size
        weights[i, first // count : -(-last // count)] = 1
    return weights / weights.sum(1, keepdims=True)
