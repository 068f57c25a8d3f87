"""Windows of maps, as kernels see them.

XLA lays maps out with the images in the rows of registers. What lies in the memory of a
core is eight images and a row of windows: rows and columns are addresses, the tokens of
an image are every eighth row, and nothing is rolled or cut.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import HIDDEN, LANES, SUBLANES, lane_tiles, round_up


class Geometry(NamedTuple):
    """How the windows of a map are worked through: groups of neighbours in a row.

    The tokens of a group fill registers better than those of a window, whose 49 leave
    most of 128 lanes empty. That tokens of two windows do not see each other, the bias
    says, and so it does of the columns that fill a group up to whole registers.

    Attributes:
      height, width: of the map.  window: (height, width).  shift: of the windows.
      group: windows of a group.
    """

    height: int
    width: int
    window: tuple[int, int]
    shift: int
    group: int

    @property
    def columns(self) -> int:
        """Of a group."""
        return self.group * self.window[1]

    @property
    def loaded(self) -> int:
        """Columns that are loaded for a group."""
        return round_up(self.columns, SUBLANES)

    @property
    def tokens(self) -> int:
        """That are loaded for a group."""
        return self.window[0] * self.loaded

    @property
    def queries(self) -> int:
        """Those tokens, and as many more as fill the lanes of registers."""
        return round_up(self.tokens, LANES)

    @property
    def reached(self) -> int:
        """Columns of a row of the map, and of its beginning once more behind it."""
        return self.width + self.shift + self.loaded - self.columns

    @property
    def groups(self) -> int:
        """In a row of windows."""
        return self.width // self.columns

    @property
    def rows(self) -> int:
        """Of windows."""
        return self.height // self.window[0]


def geometry_of(
    height: int, width: int, window: tuple[int, int], shift: int
) -> Geometry:
    """Of a map: as many windows a group as fill the lanes of registers.

    Args:
      height, width: of the map, which `window` covers.  shift: of the windows.
    """
    count = width // window[1]

    def made(group: int) -> Geometry:
        return Geometry(height, width, window, shift, group)

    divisors = [g for g in range(1, count + 1) if count % g == 0]
    return made(max((g for g in divisors if made(g).tokens <= LANES), default=1))


def pieces_of(geometry: Geometry, channels: int) -> list[pl.BlockSpec]:
    """Of a map, the lines of a row of windows: two, for the last row goes round."""
    lines, shift = geometry.window[0], geometry.shift
    upper = _lines(shift, lines - shift, geometry, channels)
    return [upper, _lines(lines, shift, geometry, channels)] if shift else [upper]


def _lines(first: int, count: int, geometry: Geometry, channels: int) -> pl.BlockSpec:
    """So many lines of eight images from that one of a row of windows, going round."""

    def index(images, row):
        start = row * geometry.window[0] + first
        over = start >= geometry.height
        start = jnp.where(over, start - geometry.height, start)
        return start, 0, images * SUBLANES, 0

    shape = (count, geometry.width, SUBLANES, channels)
    return pl.BlockSpec(tuple(map(pl.Element, shape)), index)


def write_rows(maps: Sequence[Sequence], to, convert, geometry: Geometry) -> None:
    """A row of windows as [tiles, lines, columns * images, 128], zeros where they end.

    Behind it its beginning again, for windows that go round.

    Args:
      maps: the pieces of each, see `pieces_of`.
      convert: (lines of each map) -> what is written, of 32 bits.
    """
    width, again = geometry.width, geometry.reached - geometry.width
    ends = width * SUBLANES, geometry.reached * SUBLANES
    number = 0
    for piece in zip(*maps, strict=True):
        for line in range(piece[0].shape[0]):
            for tile, lanes in enumerate(lane_tiles(piece[0].shape[-1])):
                row = convert(*(source[line, :, :, lanes] for source in piece))
                missing = LANES - row.shape[-1]
                row = jnp.pad(row, ((0, 0), (0, 0), (0, missing)))
                to[tile, number, : ends[0]] = row.reshape(-1, LANES)
                if again:
                    to[tile, number, ends[0] :] = row[:again].reshape(-1, LANES)
            number += 1


def read_rows(source, to, convert, geometry: Geometry) -> None:
    """The inverse of `write_rows`, into a map [lines, columns, images, channels]."""
    shift, end = geometry.shift, geometry.width
    for number in range(geometry.window[0]):
        for tile, lanes in enumerate(lane_tiles(to.shape[-1])):
            width = lanes.stop - lanes.start
            row = source[tile, number, :, :width].reshape(-1, SUBLANES, width)
            to[number, shift:, :, lanes] = convert(row[shift:end]).astype(to.dtype)
            if shift:
                more = convert(row[end : end + shift])
                to[number, :shift, :, lanes] = more.astype(to.dtype)


def send(results: Sequence, lines, arrived, fill, geometry: Geometry) -> None:
    """Write a row of windows where it belongs, while the next ones are made.

    In two parts, for the last row goes on at the top of the map.

    Args:
      results: maps [H, W, B, D] in the main memory.
      lines: [results, lines, columns, images, channels], free when what the step
        before sent from there has arrived.
      fill: writes `lines`.
    """
    step = pl.program_id(0) * geometry.rows + pl.program_id(1)
    parts = [(0, geometry.window[0] - geometry.shift)]
    if geometry.shift:
        parts.append((parts[0][1], geometry.shift))

    def copies(step):
        images, row = jax.lax.div(step, geometry.rows), jax.lax.rem(step, geometry.rows)
        eight = pl.ds(images * SUBLANES, SUBLANES)
        for number, (first, count) in enumerate(parts):
            start = row * geometry.window[0] + first + geometry.shift
            over = start >= geometry.height
            start = jnp.where(over, start - geometry.height, start)
            for which, result in enumerate(results):
                yield pltpu.make_async_copy(
                    lines.at[which, pl.ds(first, count)],
                    result.at[pl.ds(start, count), :, eight],
                    arrived.at[which, number],
                )

    def wait(step):
        for copy in copies(step):
            copy.wait()

    pl.when(step >= 1)(lambda: wait(step - 1))
    fill()
    for copy in copies(step):
        copy.start()
    steps = pl.num_programs(0) * geometry.rows
    pl.when(step == steps - 1)(lambda: wait(step))


def _rows_of(image: Any, group: int, count: int, geometry: Geometry):
    """Where so many columns of a group of windows of one image lie."""
    column = group * geometry.columns + geometry.shift
    return pl.ds(column * SUBLANES + image, count, stride=SUBLANES)


def tokens_at(x, image: Any, group: int, geometry: Geometry) -> jax.Array:
    """[tokens, 128] of a tile of `write_rows`."""
    rows = _rows_of(image, group, geometry.loaded, geometry)
    return jnp.concatenate([x.at[line][rows, :] for line in range(x.shape[0])], 0)


def put_at(x, made: jax.Array, image: Any, group: int, geometry: Geometry) -> None:
    """Write what `tokens_at` has read, but for the columns that fill a group up."""
    rows = _rows_of(image, group, geometry.columns, geometry)
    for line in range(x.shape[0]):
        first = line * geometry.loaded
        x.at[line][rows, :] = made[first : first + geometry.columns]


def last_row(geometry: Geometry) -> jax.Array:
    """1 in the last row of windows, else 0."""
    return (pl.program_id(1) == geometry.rows - 1).astype(jnp.int32)


def biases_at(
    biases, apart, heads: range, group: int, last: jax.Array, geometry: Geometry
) -> list[Callable[[], jax.Array]]:
    """Of each head what is added to its scores [keys, queries], when it is asked for.

    Args:
      biases, apart: see `tables_of`.  last: see `last_row`.
    """
    if not geometry.shift:
        return [functools.partial(biases.__getitem__, head) for head in heads]
    more = apart[2 * last + int(group == geometry.groups - 1)]
    return [lambda head=head: biases[head] + more for head in heads]


def tables_of(
    bias: jax.Array, apart: float, head_width: int, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    """sqrt(K) times `of_groups`, and what is added to pairs that are `_apart_of`."""
    root = head_width**0.5
    return root * of_groups(bias, geometry), root * apart * _apart_of(geometry)


def of_groups(bias: jax.Array, geometry: Geometry) -> jax.Array:
    """[heads, keys, queries] of a group: `HIDDEN` between windows, and of padding."""
    height, width = geometry.window
    lines, columns = _places(geometry)
    used = columns < geometry.columns
    number = jnp.where(used, columns // width, -1)
    place = lines * width + columns % width
    tokens = jnp.arange(height * width)
    chosen = (place[:, None] == tokens[None]) & used[:, None]
    # Products with ones: to gather so many numbers takes a TPU as long as to attend.
    turned = jnp.einsum(
        "kj,hij,qi->hkq",
        chosen.astype(bias.dtype),
        bias,
        chosen.astype(bias.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    turned = jnp.where((number[:, None] == number[None])[None], turned, HIDDEN)
    return _filled(turned, geometry)


def _apart_of(geometry: Geometry) -> jax.Array:
    """[4, keys, queries], 1 where both only meet because a window goes round.

    In no last row or group, in the last group, in the last row, in both.
    """
    lines, columns = _places(geometry)
    kinds = []
    for last_row in (0, 1):
        for last_group in (0, 1):
            below = lines >= geometry.window[0] - geometry.shift * last_row
            behind = columns >= geometry.columns - geometry.shift * last_group
            region = 2 * below + behind
            kinds.append(region[:, None] != region[None])
    return _filled(jnp.stack(kinds).astype(jnp.float32), geometry)


def _filled(pairs: jax.Array, geometry: Geometry) -> jax.Array:
    missing = geometry.queries - geometry.tokens
    return jnp.pad(pairs, ((0, 0), (0, 0), (0, missing)))


def _places(geometry: Geometry) -> tuple[jax.Array, jax.Array]:
    """Line and column of the tokens of a group."""
    number = jnp.arange(geometry.tokens)
    return number // geometry.loaded, number % geometry.loaded
