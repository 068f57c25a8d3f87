"""Attention inside windows of a feature map (Swin)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.errors import UserError
from normjax.mixers.base import MIXERS
from normjax.mixers.cores import FocusedLinear, RelativeSoftmax, SimplifiedLinear
from normjax.mixers.grid import GridMixer, merge, partition


class Windowed(GridMixer):
    """Base of mixers inside windows, which may be shifted (Swin; Liu et al., 2021).

    Attributes: those of GridMixer and
      window_size: side of a window, or (height, width). Where the smaller side of the
        grid is not larger, that side is the window and nothing is shifted.
      shift: rows and columns by which the windows are moved, cyclically; None for half
        a window in odd layers and 0 in even ones.
      layer: number of the layer, which a model gives.
    """

    window_size: int | tuple[int, int] = 7
    shift: int | None = None
    layer: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, H, W, C] -> same. Tables fix the size of the window.

        Args:
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to `qk_norm`.

        Raises:
          UserError: windows that do not cover the grid, a shift beyond the window,
            initialised for another window, or D does not split into heads.
        """
        grid = x.shape[1:3]
        window, shift = self._geometry(grid)
        core = self._own_core()

        def windows(t):
            t = jnp.roll(t, (-shift, -shift), (1, 2)) if shift else t
            return partition(t, window)

        mask = None if mask is None else windows(mask)
        q, k, v = self._project(windows(x), mask, train)
        regions = shifted_regions(grid, window, shift) if shift else None
        o = core(q, k, v, mask=mask, regions=regions)
        y = merge(self._finish(o, x.shape[-1]), grid)
        return jnp.roll(y, (shift, shift), (1, 2)) if shift else y

    @nn.nowrap
    def _geometry(self, grid: tuple[int, ...]) -> tuple[tuple[int, int], int]:
        size = self.window_size
        height, width = (size, size) if isinstance(size, int) else size
        if height == width and min(grid) <= height:
            return (min(grid), min(grid)), 0
        side = min(height, width)
        shift = (side // 2) * (self.layer % 2) if self.shift is None else self.shift
        if not 0 <= shift < side:
            raise UserError(
                f"shift {shift} of windows of {height}x{width}: it must be between 0 "
                f"and {side - 1}"
            )
        return (height, width), shift


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


@MIXERS.register("window", "grid", "mask")
class WindowAttention(Windowed):
    """Softmax attention inside windows with a bias by offset (Swin; Liu et al., 2021).

        softmax(q k^T / sqrt(K) + R) v,  R_ij = table[yi - yj, xi - xj]

    per head and window, then a projection. In shifted windows, positions that meet
    only because the shift is cyclic get -100 more. O(L w**2 D) multiply-adds for
    windows of side w. Softmax in at least float32.

    Attributes: those of Windowed.
    """

    core: ClassVar[type[nn.Module]] = RelativeSoftmax


@MIXERS.register("window_sla", "grid", "mask")
class WindowSimplifiedLinearAttention(Windowed):
    """`sla` inside windows (SLAB-Swin; Guo et al., 2024).

    The table of positions is that of a window. Shifted windows mix the positions that
    meet only because the shift is cyclic, as published; SLAB never shifts them.
    O(L K D) multiply-adds whatever the window.

    Attributes: those of Windowed and of SimplifiedLinearAttention.
    """

    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = SimplifiedLinear


@MIXERS.register("window_focused_linear", "grid", "mask")
class WindowFocusedLinearAttention(Windowed):
    """`focused_linear` inside windows (FLatten-Swin; Han et al., 2023).

    The rest as in `window_sla`.

    Attributes: those of Windowed and of FocusedLinearAttention.
    """

    focusing_factor: float = 3
    kernel_size: int = 5
    epsilon: float = 1e-6

    core: ClassVar[type[nn.Module]] = FocusedLinear
