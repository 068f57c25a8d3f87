"""Softmax attention in the windows of maps, which are not cut for it."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import (
    HIDDEN,
    LANES,
    SUBLANES,
    TOGETHER,
    attend,
    lane_tiles,
    round_up,
)

_MEMORY = 15 * 2**20  # a TPU v4 has 16 MiB
_LARGEST = 256  # tokens of a group


class _Geometry(NamedTuple):
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


def _geometry(height: int, width: int, window: tuple[int, int], shift: int):
    count = width // window[1]

    def made(group: int) -> _Geometry:
        return _Geometry(height, width, window, shift, group)

    divisors = [g for g in range(1, count + 1) if count % g == 0]
    return made(max((g for g in divisors if made(g).tokens <= LANES), default=1))


def fits(q: jax.Array, num_heads: int, window: tuple[int, int], shift: int) -> bool:
    """Whether `window_attention` computes it: types, sizes and memory.

    Args:
      q: [B, H, W, D], as k and v are.
    """
    batch, height, width, channels = q.shape
    head, geometry = channels // num_heads, _geometry(height, width, window, shift)
    return (
        q.dtype == jnp.bfloat16
        and batch % SUBLANES == 0
        and head % SUBLANES == 0
        and LANES % head == 0
        and geometry.tokens <= _LARGEST
        and geometry.reached <= 2 * width  # its beginning is there once more
        and _memory(geometry, channels, num_heads) <= _MEMORY
    )


def _memory(geometry: _Geometry, channels: int, num_heads: int) -> int:
    """Bytes: blocks twice, for the next ones come while these are worked through."""
    position = geometry.window[0] * SUBLANES * round_up(channels, LANES)
    blocks = 4 * geometry.width * position * 2
    moved = 3 * geometry.reached * position * 4
    pairs = geometry.tokens * round_up(geometry.tokens, LANES)
    return 2 * blocks + moved + (num_heads + 4) * pairs * 4


def window_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: int = 0,
    apart: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias) v in every window of a map.

    Windows begin `shift` rows and columns behind the corner; those that reach over an
    edge go on at the opposite one (Liu et al., 2021), and `apart` is added to pairs
    that only meet there. Softmax and sums in float32.

    XLA lays maps out with the images in the rows of registers, for sides of 28 or 14 do
    not fill them. So does the kernel, to which rows and columns are addresses: nothing
    is rolled or cut. Eight images and one row of windows are a step; the tokens of an
    image are every eighth row.

    Args:
      q, k, v: bfloat16 [B, H, W, D], heads side by side.
      bias: [heads, h * w, h * w] of queries and keys of a window.
      num_heads: heads of K = D / num_heads channels.
      window: (h, w), which cover the map.  shift: less than both.
      interpret: compute it by JAX, on any platform.

    Returns:
      [B, H, W, D] in the dtype of q.
    """
    batch, height, width, channels = q.shape
    geometry = _geometry(height, width, window, shift)
    head = channels // num_heads
    root = head**0.5
    biases = root * _of_groups(bias.astype(jnp.float32), geometry)
    added = root * apart * _apart(geometry)
    pieces = _pieces(geometry, channels)
    tables = [pl.BlockSpec(x.shape, lambda *_: (0, 0, 0)) for x in (biases, added)]
    maps = [t for x in (q, k, v) for t in [jnp.moveaxis(x, 0, 2)] * len(pieces)]
    rows = (len(lane_tiles(channels)), window[0], geometry.reached * SUBLANES, LANES)
    lines = (2, window[0], width, SUBLANES, channels)
    kernel = functools.partial(_kernel, geometry=geometry, head_width=head)
    o = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((height, width, batch, channels), q.dtype),
        grid=(batch // SUBLANES, geometry.rows),
        in_specs=pieces * 3 + tables,
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        scratch_shapes=[
            *[pltpu.VMEM(rows, jnp.float32)] * 3,
            pltpu.VMEM(lines, q.dtype),
            pltpu.SemaphoreType.DMA((2, 2)),
        ],
        interpret=interpret,
        name="window_attention",
    )(*maps, biases, added)
    return jnp.moveaxis(o, 2, 0)


def _pieces(geometry: _Geometry, channels: int) -> list[pl.BlockSpec]:
    """Of a map, the lines of a row of windows: two, for the last row goes round."""
    lines, shift = geometry.window[0], geometry.shift
    upper = _lines(shift, lines - shift, geometry, channels)
    return [upper, _lines(lines, shift, geometry, channels)] if shift else [upper]


def _lines(first: int, count: int, geometry: _Geometry, channels: int) -> pl.BlockSpec:
    """So many lines of eight images from that one of a row of windows, going round."""

    def index(images, row):
        start = row * geometry.window[0] + first
        over = start >= geometry.height
        start = jnp.where(over, start - geometry.height, start)
        return start, 0, images * SUBLANES, 0

    shape = (count, geometry.width, SUBLANES, channels)
    return pl.BlockSpec(tuple(map(pl.Element, shape)), index)


def _kernel(*refs: Any, geometry: _Geometry, head_width: int):
    pieces = 2 if geometry.shift else 1
    biases, apart, result, *inputs, lines, arrived = refs[3 * pieces :]
    for number, to in enumerate(inputs):
        place = 0
        for source in refs[number * pieces : (number + 1) * pieces]:
            for line in range(source.shape[0]):
                _write_row(source.at[line], to, place + line, geometry)
            place += source.shape[0]
    images, row = pl.program_id(0), pl.program_id(1)
    last = (row == geometry.rows - 1).astype(jnp.int32)
    tiles = list(enumerate(lane_tiles(lines.shape[-1])))
    jobs = list(itertools.product(tiles, range(geometry.groups)))

    def one_image(image, _):
        for start in range(0, len(jobs), TOGETHER):
            part = jobs[start : start + TOGETHER]
            given, seen = [], []
            for (tile, lanes), group in part:
                rows = _rows(image, group, geometry.loaded, geometry)
                width = lanes.stop - lanes.start
                given.append(tuple(_tokens(x.at[tile], rows, width) for x in inputs))
                behind = int(group == geometry.groups - 1)
                first = lanes.start // head_width
                more = apart[2 * last + behind] if geometry.shift else None
                seen.append(functools.partial(_bias, biases, more, first))
            made = attend(given, seen, head_width)
            for ((tile, _), group), each in zip(part, made, strict=True):
                rows = _rows(image, group, geometry.columns, geometry)
                _put(inputs[0].at[tile], each, rows, geometry)  # nobody asks it again
        return 0

    jax.lax.fori_loop(0, SUBLANES, one_image, 0)
    _send(inputs[0], lines, result, arrived, images, row, geometry)


def _send(made, lines, result, arrived, images, row, geometry: _Geometry) -> None:
    """Write a row of windows where it belongs, while the next ones are made.

    In two parts, for the last row goes on at the top of the map. A part waits until
    its place in `lines` is free: until what was sent from there two steps ago is there.
    """
    step = images * geometry.rows + row
    slot = jax.lax.rem(step, 2)
    parts = [(0, geometry.window[0] - geometry.shift)]
    if geometry.shift:
        parts.append((parts[0][1], geometry.shift))

    def copies(step, slot):
        images, row = jax.lax.div(step, geometry.rows), jax.lax.rem(step, geometry.rows)
        for number, (first, count) in enumerate(parts):
            start = row * geometry.window[0] + first + geometry.shift
            over = start >= geometry.height
            start = jnp.where(over, start - geometry.height, start)
            eight = pl.ds(images * SUBLANES, SUBLANES)
            yield pltpu.make_async_copy(
                lines.at[slot, pl.ds(first, count)],
                result.at[pl.ds(start, count), :, eight],
                arrived.at[slot, number],
            )

    def wait(step, slot):
        for copy in copies(step, slot):
            copy.wait()

    pl.when(step >= 2)(lambda: wait(step - 2, slot))
    for line in range(geometry.window[0]):
        _read_row(made, lines.at[slot, line], line, geometry)
    for copy in copies(step, slot):
        copy.start()
    steps = pl.num_programs(0) * geometry.rows

    @pl.when(step == steps - 1)
    def _():
        pl.when(step >= 1)(lambda: wait(step - 1, 1 - slot))
        wait(step, slot)


def _write_row(source, to, number: int, geometry: _Geometry) -> None:
    """A row of the map as float32 [columns * images, 128], and its beginning again."""
    again = geometry.reached - geometry.width
    for tile, lanes in enumerate(lane_tiles(source.shape[-1])):
        row = source[:, :, lanes].astype(jnp.float32)
        width = row.shape[-1]
        ends = geometry.width * SUBLANES, geometry.reached * SUBLANES
        to[tile, number, : ends[0], :width] = row.reshape(-1, width)
        if again:
            to[tile, number, ends[0] : ends[1], :width] = row[:again].reshape(-1, width)


def _read_row(source, to, number: int, geometry: _Geometry) -> None:
    shift, end = geometry.shift, geometry.width
    for tile, lanes in enumerate(lane_tiles(to.shape[-1])):
        width = lanes.stop - lanes.start
        row = source[tile, number, :, :width].reshape(-1, SUBLANES, width)
        to[shift:, :, lanes] = row[shift:end].astype(to.dtype)
        if shift:
            to[:shift, :, lanes] = row[end : end + shift].astype(to.dtype)


def _tokens(x, rows, width: int) -> jax.Array:
    """[tokens, channels] of a group of windows of one image."""
    lines = [x.at[line][rows, :] for line in range(x.shape[0])]
    return jnp.concatenate(lines, 0)[:, :width]


def _put(x, made, rows, geometry: _Geometry) -> None:
    made = jnp.pad(made, ((0, 0), (0, LANES - made.shape[1])))
    for line in range(x.shape[0]):
        first = line * geometry.loaded
        x.at[line][rows, :] = made[first : first + geometry.columns]


def _rows(image, group: int, count: int, geometry: _Geometry):
    column = group * geometry.columns + geometry.shift
    return pl.ds(column * SUBLANES + image, count, stride=SUBLANES)


def _bias(biases, apart, first: int, head: int) -> jax.Array:
    bias = biases[first + head]
    return bias if apart is None else bias + apart


def _of_groups(bias: jax.Array, geometry: _Geometry) -> jax.Array:
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
    return jnp.where((number[:, None] == number[None])[None], turned, HIDDEN)


def _apart(geometry: _Geometry) -> jax.Array:
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
    return jnp.stack(kinds).astype(jnp.float32)


def _places(geometry: _Geometry) -> tuple[jax.Array, jax.Array]:
    """Line and column of the tokens of a group."""
    number = jnp.arange(geometry.tokens)
    return number // geometry.loaded, number % geometry.loaded
