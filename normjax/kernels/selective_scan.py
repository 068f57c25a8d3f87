"""The selective scan, whose states are nowhere but in fast memory."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import LANES, SUBLANES, lane_tiles
from normjax.kernels.scan_layout import STEPS, Layout

ORDER = "parallel", "parallel", "arbitrary"


def selective_scan(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    skip: jax.Array,
    state: jax.Array,
    *,
    each: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t . h_t + D u_t.

    Channels are the lanes and states the rows of registers; B_t and C_t of a block are
    put in all lanes first. All in float32 (Gu and Dao, 2024).

    Args:
      u, delta: float32 or bfloat16 [B, L, D].  a: [D, N].  b, c: [B, L, G, N].
      skip: [D].  state: [B, D, N], h before the first position.
      each: also the states before every block of positions, as gradients need them.
      interpret: compute it by JAX, on any platform.

    Returns:
      y [B, L, D] and the last h [B, D, N] in float32; with `each` a third array, in the
      layout of the kernels.
    """
    layout = Layout.of(u, b)
    given = [layout.positions(u), layout.positions(delta), layout.rates(a)]
    given += [layout.columns(b), layout.columns(c), layout.tables(skip[:, None], 1)]
    given += [layout.tables(state, layout.rows)]
    y, last, *kept = _call(given, layout, each, interpret)
    return layout.from_positions(y), layout.from_tables(last), *kept


def _call(
    given: Sequence[jax.Array], layout: Layout, each: bool, interpret: bool
) -> list:
    u, *_, first = given
    places, wide = Places(layout), jnp.float32
    positions, columns, states = places.positions(), places.columns(), places.states()
    shapes = [u.shape, first.shape] + [layout.before] * each
    return pl.pallas_call(
        _kernel,
        [jax.ShapeDtypeStruct(shape, wide) for shape in shapes],
        grid=layout.grid,
        in_specs=[
            *[positions] * 2,
            places.table(layout.rows),
            *[columns] * 2,
            places.table(1),
            states,
        ],
        out_specs=[positions, states] + [places.before()] * each,
        scratch_shapes=[
            pltpu.VMEM((layout.rows, layout.width), wide),
            places.wide(),
            *places.of_a_turn(numbers=3, sums=1),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=ORDER),
        interpret=interpret,
        name="selective_scan",
    )(*given)


class Places:
    """Blocks of arrays that a step of the grid has, and what it works with."""

    def __init__(self, layout: Layout, reverse: bool = False):
        self.layout, self.reverse = layout, reverse

    def _block(self, i):
        return self.layout.blocks - 1 - i if self.reverse else i

    def positions(self) -> pl.BlockSpec:
        shape = 1, self.layout.span, self.layout.width
        return pl.BlockSpec(shape, lambda n, d, i: (n, self._block(i), d))

    def table(self, rows: int) -> pl.BlockSpec:
        """Of what is the same for all examples."""
        return pl.BlockSpec((rows, self.layout.width), lambda n, d, i: (0, d))

    def columns(self) -> pl.BlockSpec:
        """Of a group, for each of its parts."""
        parts = self.layout.parts

        def index(n, d, i):
            return n, jax.lax.div(d, jnp.int32(parts)), 0, self._block(i), 0, 0

        return pl.BlockSpec(self._columns(), index)

    def sums(self) -> pl.BlockSpec:
        """The same of each part."""
        shape = self._columns()
        return pl.BlockSpec(shape, lambda n, d, i: (n, d, 0, self._block(i), 0, 0))

    def _columns(self):
        return 1, 1, self.layout.sharing, 1, *self.layout.flat

    def states(self, rows: int | None = None) -> pl.BlockSpec:
        """Of an example."""
        shape = 1, rows or self.layout.rows, self.layout.width
        return pl.BlockSpec(shape, lambda n, d, i: (n, 0, d))

    def before(self) -> pl.BlockSpec:
        """States before each block."""
        shape = 1, 1, self.layout.rows, self.layout.width
        return pl.BlockSpec(shape, lambda n, d, i: (n, self._block(i), 0, d))

    def wide(self) -> Any:
        """Scratch for two arrays of columns, in all lanes."""
        shape = 2, self.layout.span * self.layout.rows, LANES
        return pltpu.VMEM(shape, jnp.float32)

    def of_a_turn(self, numbers: int, sums: int) -> list[Any]:
        """Scratch for rows of channels, and `SumOverRows` of their registers."""
        tiles, wide = self.layout.together // LANES, jnp.float32
        return [
            pltpu.VMEM((numbers, STEPS, self.layout.together), wide),
            pltpu.VMEM((sums, tiles, STEPS * SUBLANES // 2, LANES), wide),
        ]


def _kernel(u, delta, a, b, c, skip, first, y, last, *rest):
    *kept, states, columns, rows, parts = rest

    @pl.when(pl.program_id(2) == 0)
    def _():
        states[...] = first[0]

    if kept:
        kept[0][0, 0] = states[...]
    spread((b, c), columns)
    for tiles in some_tiles(u.shape[2], rows.shape[2]):
        given = u, delta, a, skip, columns, y, states, rows, parts
        turn = functools.partial(_some_steps, tiles, given)
        jax.lax.fori_loop(0, u.shape[1] // STEPS, turn, 0)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last[0] = states[...]


def _some_steps(tiles: Sequence[slice], given: tuple, turn: Any, carry: Any) -> Any:
    u, delta, a, skip, columns, y, states, rows, parts = given
    here = pl.ds(pl.multiple_of(turn * STEPS, STEPS), STEPS)
    for k, tile in enumerate(tiles):
        own, step = (t[0, here, tile].astype(jnp.float32) for t in (u, delta))
        for i, t in enumerate((step, step * own, skip[:, tile] * own)):
            rows[i, :, lanes(k)] = t
    sums = [SumOverRows(parts.at[0, k]) for k in range(len(tiles))]
    h = [states[:, tile] for tile in tiles]
    for t in range(STEPS):
        b, c = (columns[i, at_step(turn, t, len(a))] for i in range(2))
        for k, tile in enumerate(tiles):
            step, added = (rows[i, t : t + 1, lanes(k)] for i in range(2))
            h[k] = jnp.exp2(step * a[:, tile]) * h[k] + added * b
            sums[k].add(t, h[k] * c)
        if (t + 1) % SUBLANES == 0:
            own = slice(t + 1 - SUBLANES, t + 1)
            some = pl.ds(here.start + own.start, SUBLANES)
            for k, tile in enumerate(tiles):
                y[0, some, tile] = sums[k].read(own.start) + rows[2, own, lanes(k)]
    for k, tile in enumerate(tiles):
        states[:, tile] = h[k]
    return carry


def some_tiles(width: int, together: int) -> list[list[slice]]:
    """The channels of registers, those together whose steps alternate."""
    tiles, most = lane_tiles(width), together // LANES
    return [tiles[i : i + most] for i in range(0, len(tiles), most)]


def lanes(number: int) -> slice:
    """Of the register of that number."""
    return slice(number * LANES, (number + 1) * LANES)


def at_step(turn: Any, t: int, rows: int) -> Any:
    """Rows of a step, of `Places.wide`."""
    start = pl.multiple_of(turn * STEPS * rows, STEPS * rows)
    return pl.ds(start + t * rows, rows)


def spread(sources: Sequence[Any], to: Any) -> None:
    """[1, 1, S, 1, X, LANES] of each source: X below each other, in the lanes of S.

    Rows transposed, which takes two thirds of what it takes to copy lanes.
    """
    _, _, sharing, _, count, _ = sources[0].shape

    def one(row, place):
        for i, source in enumerate(sources):
            own = (source[0, 0, group, 0, row] for group in range(sharing))
            own = [jnp.broadcast_to(t, (LANES // sharing, LANES)) for t in own]
            to[i, place] = jnp.transpose(jnp.concatenate(own, 0))

    _by_rows(count, one)


def gather(source: Any, sums: Sequence[Any]) -> None:
    """The inverse of `spread`: sums over the lanes of S."""
    _, _, sharing, _, count, _ = sums[0].shape

    def one(row, place):
        for i, to in enumerate(sums):
            turned = jnp.transpose(source[i, place])
            turned = turned.reshape(sharing, LANES // sharing, LANES)
            for group in range(sharing):
                to[0, 0, group, 0, row] = jnp.sum(turned[group], 0, keepdims=True)

    _by_rows(count, one)


def _by_rows(count: int, function: Callable[[Any, Any], None]) -> None:
    """`function(row, those that it is spread to)`, four alternating where they can."""
    several = math.gcd(count, 4)

    def some(number, carry):
        for row in (number * several + i for i in range(several)):
            start = pl.multiple_of(row * LANES, LANES)
            function(pl.ds(row, 1), pl.ds(start, LANES))
        return carry

    jax.lax.fori_loop(0, count // several, some, 0)


class SumOverRows:
    """Sums over the rows of registers, step after step, to a register of steps.

    Two become one of which each has half of the rows, and of eight halves one row each
    is read at a time: that takes the vector unit 1.9 operations a step.
    """

    def __init__(self, scratch: Any):
        self.scratch = scratch
        self.before: dict[int, jax.Array] = {}

    def add(self, t: int, values: jax.Array) -> None:
        """[rows, LANES] of step t; steps 2 i and 2 i + 1 one after the other."""
        parts = [values[i : i + SUBLANES] for i in range(0, len(values), SUBLANES)]
        own, half = sum(parts[1:], parts[0]), SUBLANES // 2
        other = self.before.pop(t ^ 1, None)
        if other is None:
            self.before[t] = own
            return
        first, second = (other, own) if t % 2 else (own, other)
        upper = jax.lax.broadcasted_iota(jnp.int32, own.shape, 0) < half
        lower = pltpu.roll(jnp.where(upper, second, first), half, 0)
        place = pl.ds(half * (t & ~1), SUBLANES)
        self.scratch[place] = jnp.where(upper, first, second) + lower

    def read(self, first: int) -> jax.Array:
        """[SUBLANES, LANES] of the steps from `first` on."""
        half = SUBLANES // 2
        starts = (half * first + row for row in range(half))
        read = [self.scratch[pl.ds(i, SUBLANES, stride=half)] for i in starts]
        return (read[0] + read[1]) + (read[2] + read[3])
