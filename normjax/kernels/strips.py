"""Maps in strips of rows, as kernels see them, and a depthwise convolution there.

XLA lays maps out with the images in the rows of registers. What lies in the memory of a
core is eight images and 128 channels, flat in float32: [rows * columns * images, 128].
Rows and columns are addresses, the tokens of an image are every eighth row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import LANES, SUBLANES, round_up

_COLUMNS = 14  # whose sums stay in registers


class Strips(NamedTuple):
    """How a map is cut; strip by strip along the last axis of the grid of a kernel.

    Attributes:
      height, width: of the map.  size: of the convolution.  rows: of a strip.
    """

    height: int
    width: int
    size: int
    rows: int

    @property
    def count(self) -> int:
        """Of a map."""
        return self.height // self.rows

    @property
    def rim(self) -> int:
        """Rows and columns around a position that its convolution sees."""
        return self.size // 2

    @property
    def given(self) -> int:
        """Rows of a strip and those around it, as far as there are."""
        return min(self.rows + 2 * self.rim, self.height)

    @property
    def tokens(self) -> int:
        """Of an image, in whole registers of bfloat16."""
        return round_up(self.rows * self.width, 2 * SUBLANES)

    @property
    def surrounded(self) -> int:
        """Tokens of what `surround` writes."""
        return round_up((self.rows + 4 * self.rim) * self.width, 2 * SUBLANES)

    def first(self, strip: Any) -> Any:
        """The row of the map with which the `given` ones begin."""
        if self.count == 1:
            return 0
        last = self.height - self.given
        return jnp.clip(strip * self.rows - self.rim, 0, last)

    def line(self, row: Any) -> Any:
        """Where a row lies."""
        length = self.width * SUBLANES
        return pl.ds(row * length, length)

    def of_image(self, image: Any, row: int = 0) -> Any:
        """Where the tokens of an image lie, from that row."""
        first = row * self.width * SUBLANES
        return pl.ds(first + image, self.tokens, stride=SUBLANES)


def images_inside(x: jax.Array, interpret: bool) -> jax.Array:
    """[B, H, W, D] -> [H, W, B, D], as XLA lays maps out, in the main memory.

    Elsewhere XLA would let the kernel copy its blocks by loads and stores.
    """
    x = jnp.moveaxis(x, 0, 2)
    return x if interpret else pltpu.with_memory_space_constraint(x, pltpu.HBM)


def flatten(source, to, strips: Strips) -> None:
    """A strip in float32, zeros behind the last token."""
    for row in range(strips.rows):
        line = source[row].astype(jnp.float32)
        to[strips.line(row), :] = line.reshape(-1, LANES)
    _clear(to, strips.rows * strips.width)


def surround(source, to, strips: Strips) -> None:
    """A strip from row 2 * rim, and the rows around it, zeros beyond the map.

    At an edge of the map there are the more rows at its other side, which nobody reads.
    """
    strip, rim = pl.program_id(2), strips.rim

    @pl.when(strip == 0)
    def _():
        for row in range(rim, 2 * rim):
            to[strips.line(row), :] = jnp.zeros_like(to[strips.line(row), :])

    @pl.when(strip == strips.count - 1)
    def _():
        _clear(to, (strips.rows + 2 * rim) * strips.width)

    begin = strips.first(strip) - strip * strips.rows + 2 * rim
    for row in range(strips.given):
        line = source[row].astype(jnp.float32)
        to[strips.line(begin + row), :] = line.reshape(-1, LANES)


def _clear(to, tokens: int) -> None:
    behind = to.shape[0] - tokens * SUBLANES
    if behind:
        to[tokens * SUBLANES :] = jnp.zeros((behind, LANES), to.dtype)


def convolve(values, taps, to, strips: Strips) -> None:
    """Sums over taps that lie in the map, and the bias, row by row.

    Args:
      values: of `surround`.
      taps: [size**2 + 1, 128], the bias last.
      to: flat, of a strip.
    """
    size, width, rim = strips.size, strips.width, strips.rim
    count = -(-width // -(-width // _COLUMNS))

    def line(row, _):
        for start in range(0, width, count):
            end = min(start + count, width)
            left, right = max(start - rim, 0), min(end + rim, width)
            total = [taps[size**2 : size**2 + 1]] * (end - start)
            for i in range(size):
                place = ((rim + row + i) * width + left) * SUBLANES
                x = values[pl.ds(place, (right - left) * SUBLANES), :]
                for j in range(size):
                    tap = taps[size * i + j : size * i + j + 1]
                    for column in range(start, end):
                        seen = column + j - rim
                        if 0 <= seen < width:
                            at = (seen - left) * SUBLANES
                            more = x[at : at + SUBLANES] * tap
                            total[column - start] = total[column - start] + more
            place = (row * width + start) * SUBLANES
            to[pl.ds(place, (end - start) * SUBLANES), :] = jnp.concatenate(total, 0)
        return 0

    jax.lax.fori_loop(0, strips.rows, line, 0)
