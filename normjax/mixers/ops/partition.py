"""Maps cut into parts, put together again, stretched and pooled."""

from typing import Any, NamedTuple

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


def padded(x: jax.Array, multiple: tuple[int, ...], value: Any = 0) -> jax.Array:
    """x [B, H, W, ...] with `value` on the right and below up to multiples of sides.

    Args:
      multiple: (rows, columns).
    """
    lack = [-n % m for n, m in zip(x.shape[1:3], multiple, strict=True)]
    if not any(lack):
        return x
    around = [(0, 0), *((0, n) for n in lack), *[(0, 0)] * (x.ndim - 3)]
    return jnp.pad(x, around, constant_values=value)


def unfolded(
    x: jax.Array, kernel_size: int, stride: int, padding: int = 0
) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', C * k * k]: patches that overlap, zeros beyond.

    The soft split of T2T-ViT (Yuan et al., 2021), in PyTorch's order: channel slowest,
    then row and column of the kernel. H' = (H + 2 padding - k) // stride + 1, W'
    likewise.

    Args:
      x: the map.
      kernel_size: k.  stride: between patches.  padding: zeros on each side.

    Raises:
      UserError: a map that is smaller than the kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)  # [B, H, W, C]
      >>> print(mixers.unfolded(x, 2, 1)[0, 0, 1])
      [1. 2. 4. 5.]
    """
    around = (0, 0), (padding, padding), (padding, padding), (0, 0)
    x = jnp.pad(x, around)
    rows, columns = ((side - kernel_size) // stride + 1 for side in x.shape[1:3])
    if min(rows, columns) < 1:
        height, width = (side - 2 * padding for side in x.shape[1:3])
        raise UserError(
            f"a map of {height}x{width} with a border of {padding} has no patch of "
            f"{kernel_size}x{kernel_size}"
        )
    shape = (x.shape[0], rows, columns, -1)
    ends = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    patches = [
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
        for i in range(kernel_size)
        for j in range(kernel_size)
    ]
    return jnp.stack(patches, -1).reshape(shape)


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


class Windows(NamedTuple):
    """How a map is cut into windows.

    Attributes:
      size: (height, width).
      shift: rows and columns by which the windows are moved, cyclically.
    """

    size: tuple[int, int]
    shift: int = 0

    def cut(self, x: jax.Array) -> jax.Array:
        """[B, H, W, ...] -> [B * n, h, w, ...]."""
        back = -self.shift, -self.shift
        return partition(jnp.roll(x, back, (1, 2)) if self.shift else x, self.size)

    def joined(self, x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
        """The inverse of `cut`."""
        x = merge(x, grid)
        return jnp.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def regions(self, grid: tuple[int, ...]) -> np.ndarray | None:
        """`shifted_regions`; None where nothing is shifted."""
        return shifted_regions(grid, self.size, self.shift) if self.shift else None


def overlapping(
    x: jax.Array, size: tuple[int, int], stride: tuple[int, int], dilation: int = 1
) -> jax.Array:
    """[B, H, W, ...] -> [B, n, m, h, w, ...]: windows that lie in the map.

    Window (i, j) starts at row i * stride[0] and column j * stride[1]; its rows and
    columns are `dilation` apart. As many as fit.
    """
    for axis in (0, 1):
        place, reach = 1 + 2 * axis, dilation * (size[axis] - 1) + 1
        count = (x.shape[place] - reach) // stride[axis] + 1
        starts = range(0, reach, dilation)
        end, step = stride[axis] * (count - 1) + 1, stride[axis]
        # Slices, whose adjoint is a sum; that of a gather is a scatter.
        rows = [jax.lax.slice_in_dim(x, s, s + end, step, place) for s in starts]
        x = jnp.stack(rows, place + 1)
    return jnp.swapaxes(x, 2, 3)


def bordered(x: jax.Array, width: int) -> jax.Array:
    """[B, H, W, C] with `width` zeros around every map."""
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


def neighbours(x: jax.Array, size: int = 3) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, s * s, C]: the s x s around each, 0 beyond the map."""
    cells = overlapping(bordered(x, size // 2), (size, size), (1, 1))
    return cells.reshape(*x.shape[:3], size * size, x.shape[-1])


def to_neighbours(x: jax.Array, size: int = 3) -> jax.Array:
    """[B, H, W, s * s, C] -> [B, H, W, C]: what each gives to the s x s around it.

    Summed where it arrives; what goes beyond the map is lost. The adjoint of
    `neighbours`.
    """
    height, width = x.shape[1:3]
    x, reach = x.reshape(*x.shape[:3], size, size, -1), size // 2
    total = jnp.zeros((x.shape[0], height, width, x.shape[-1]), x.dtype)
    for i in range(size):
        for j in range(size):
            up, left = 2 * reach - i, 2 * reach - j
            part = bordered(x[:, :, :, i, j], reach)
            total += part[:, up : up + height, left : left + width]
    return total


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


def pooled(x: jax.Array, side: int | tuple[int, int]) -> jax.Array:
    """[B, H, W, C] -> [B, s, t, C] in at least float32: averages over bins.

    Bin i of H rows goes from floor(i H / s) to ceil((i + 1) H / s), columns likewise.
    """
    x, sides = at_least_float32(x), pair(side)
    rows, columns = (
        jnp.asarray(bins(n, count), x.dtype)
        for n, count in zip(x.shape[1:3], sides, strict=True)
    )
    x = einsum("sh,bhwc->bswc", rows, x)
    return einsum("tw,bswc->bstc", columns, x)


def highest(x: jax.Array, size: int = 3, stride: int = 1) -> jax.Array:
    """The maximum of the s x s around every `stride`-th position of [B, H, W, C]."""
    rim, window = (size // 2, size // 2), (1, size, size, 1)
    padding, steps = ((0, 0), rim, rim, (0, 0)), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, steps, padding)


def pooled_valid(
    x: jax.Array, side: int | tuple[int, int], mask: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """`pooled` over the positions that the mask [B, H, W] leaves, and its mask.

    A position of the smaller map is one if any that it is made of is.

    Args:
      x: 0 where the mask is False.
    """
    small = pooled(x, side)
    if mask is None:
        return small, None
    share = pooled(mask[..., None].astype(small.dtype), side)
    return small / jnp.where(share > 0, share, 1), share[..., 0] > 0


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a side or of both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def bins(size: int, count: int) -> np.ndarray:
    """[count, size], the weights of `size` positions in each bin."""
    weights = np.zeros((count, size))
    for i in range(count):
        first, last = i * size, (i + 1) * size
        weights[i, first // count : -(-last // count)] = 1
    return weights / weights.sum(1, keepdims=True)
