"""The selective scan, whose states are nowhere but in fast memory."""

import functools
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

    Channels are the lanes and states the rows of registers; B_t and C_t are put in all
    lanes while the turn before is computed. All in float32 (Gu and Dao, 2024).

    Args:
      u, delta: float32 or bfloat16 [B, L, D].  a: [D, N].  b, c: [B, L, G, N].
      skip: [D].  state: [B, D, N], h before the first position.
      each: also the states before every span of positions, which gradients start from.
      interpret: compute it by JAX, on any platform.

    Returns:
      y [B, L, D] and the last h [B, D, N] in float32; with `each` a third array, in the
      layout of the kernels.
    """
    layout = Layout.of(u, b)
    places = Places(layout)
    rates, first = layout.rates(a), layout.tables(state, layout.rows)
    given = [layout.positions(u), layout.positions(delta), rates]
    given += [layout.columns(b), layout.columns(c)]
    given += [layout.tables(skip[:, None], 1), first]
    spans = layout.batch, layout.blocks * layout.spans, *first.shape[1:]
    shapes = [given[0].shape, first.shape] + [spans] * each
    found = pl.pallas_call(
        functools.partial(_kernel, span=layout.span),
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=places.grid,
        in_specs=[
            *[places.positions()] * 2,
            places.table(layout.rows),
            *[places.columns()] * 2,
            places.table(1),
            places.states(),
        ],
        out_specs=[places.positions(), places.states()] + [places.spans()] * each,
        scratch_shapes=[
            pltpu.VMEM((layout.rows, layout.width), jnp.float32),
            *places.of_a_turn(numbers=3, sums=1),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=ORDER),
        interpret=interpret,
        name="selective_scan",
    )(*given)
    y, last, *kept = found
    return layout.from_positions(y), layout.from_tables(last), *kept


class Places:
    """Blocks of arrays that a step of the grid has, and what it works with."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.grid = layout.batch, layout.groups * layout.parts, layout.blocks

    def _block(self, i):
        return self.layout.blocks - 1 - i if self.layout.reverse else i

    def positions(self) -> pl.BlockSpec:
        shape = 1, self.layout.spans * self.layout.span, self.layout.width
        return pl.BlockSpec(shape, lambda n, d, i: (n, self._block(i), d))

    def table(self, rows: int) -> pl.BlockSpec:
        """Of what is the same for all examples."""
        return pl.BlockSpec((rows, self.layout.width), lambda n, d, i: (0, d))

    def columns(self) -> pl.BlockSpec:
        """Of a group, for each of its parts."""
        shape = 1, 1, self.layout.spans, self.layout.rows, LANES
        parts = self.layout.parts

        def index(n, d, i):
            return n, jax.lax.div(d, jnp.int32(parts)), self._block(i), 0, 0

        return pl.BlockSpec(shape, index)

    def sums(self) -> pl.BlockSpec:
        """The same of each part."""
        shape = 1, 1, self.layout.spans, self.layout.rows, LANES
        return pl.BlockSpec(shape, lambda n, d, i: (n, d, self._block(i), 0, 0))

    def states(self, rows: int | None = None) -> pl.BlockSpec:
        """Of an example."""
        shape = 1, rows or self.layout.rows, self.layout.width
        return pl.BlockSpec(shape, lambda n, d, i: (n, 0, d))

    def spans(self) -> pl.BlockSpec:
        """States before each span."""
        shape = 1, self.layout.spans, self.layout.rows, self.layout.width
        return pl.BlockSpec(shape, lambda n, d, i: (n, self._block(i), 0, d))

    def of_a_turn(self, numbers: int, sums: int) -> list[Any]:
        """Scratch for columns, rows of channels, and `SumOverRows` of each register."""
        tiles, wide = self.layout.width // LANES, jnp.float32
        return [
            pltpu.VMEM((2, STEPS, self.layout.rows, LANES), wide),
            pltpu.VMEM((numbers, STEPS, self.layout.width), wide),
            pltpu.VMEM((sums, tiles, STEPS * SUBLANES // 2, LANES), wide),
        ]


def _kernel(u, delta, a, b, c, skip, first, y, last, *rest, span: int):
    *kept, states, columns, rows, parts = rest
    tiles, turns = lane_tiles(u.shape[2]), span // STEPS
    total = u.shape[1] // STEPS

    @pl.when(pl.program_id(2) == 0)
    def _():
        states[...] = first[0]

    def one_turn(turn):
        here = pl.ds(pl.multiple_of(turn * STEPS, STEPS), STEPS)
        for tile in tiles:
            own, step = (t[0, here, tile].astype(jnp.float32) for t in (u, delta))
            rows[0, :, tile], rows[1, :, tile] = step, step * own
            rows[2, :, tile] = skip[:, tile] * own
        following = columns_of((b, c), jnp.minimum(turn + 1, total - 1), turns)
        sums = [SumOverRows(parts.at[0, k]) for k in range(len(tiles))]
        h = [states[:, tile] for tile in tiles]
        for t in range(STEPS):
            for k, tile in enumerate(tiles):
                decay = jnp.exp2(rows[0, t : t + 1, tile] * a[:, tile])
                h[k] = decay * h[k] + rows[1, t : t + 1, tile] * columns[0, t]
                sums[k].add(t, h[k] * columns[1, t])
            columns[0, t], columns[1, t] = following(t)
            if (t + 1) % SUBLANES == 0:
                own = slice(t + 1 - SUBLANES, t + 1)
                some = pl.ds(here.start + own.start, SUBLANES)
                for k, tile in enumerate(tiles):
                    y[0, some, tile] = sums[k].read(own.start) + rows[2, own, tile]
        for k, tile in enumerate(tiles):
            states[:, tile] = h[k]

    def one_span(number, _):
        if kept:
            kept[0][0, number] = states[...]

        def some_steps(turn, _):
            one_turn(number * turns + turn)
            return 0

        return jax.lax.fori_loop(0, turns, some_steps, 0)

    begin = columns_of((b, c), 0, turns)
    for t in range(STEPS):
        columns[0, t], columns[1, t] = begin(t)
    jax.lax.fori_loop(0, total // turns, one_span, 0)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last[0] = states[...]


def columns_of(
    sources: Sequence[Any], turn: Any, turns: int
) -> Callable[[int], list[jax.Array]]:
    """(step of the turn) -> its number of each row in all lanes, of each source.

    Args:
      sources: [1, 1, spans, rows, LANES], positions of a span side by side.
      turn: which of the block.  turns: of a span.
    """
    span = jax.lax.div(turn, jnp.int32(turns))
    start = (turn - span * turns) * STEPS
    shift = jax.lax.rem(LANES - start, LANES)
    moved = [pltpu.roll(source[0, 0, span], shift, 1) for source in sources]
    return lambda t: [jnp.broadcast_to(m[:, t : t + 1], m.shape) for m in moved]


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
