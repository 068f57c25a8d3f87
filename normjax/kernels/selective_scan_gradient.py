"""Gradients of the selective scan, from the last position to the first."""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import SUBLANES, lane_tiles
from normjax.kernels.scan_layout import STEPS, Layout
from normjax.kernels.selective_scan import ORDER, Places, SumOverRows, columns_of


def gradients(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    skip: jax.Array,
    kept: jax.Array,
    dy: jax.Array,
    dlast: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Of (y, last) = `selective_scan`, for cotangents `dy` and `dlast`.

    With a_t = exp(delta_t A), x_t = delta_t u_t and the sum over channels of a group as
    over states,

        g_t = C_t dy_t + a_{t+1} g_{t+1}        s_t = a_t h_{t-1} g_t
        dC_t = sum_d h_t dy_t    dB_t = sum_d g_t x_t    dx_t = B_t . g_t
        dA = sum_t delta_t s_t    ddelta_t = A . s_t + u_t dx_t
        du_t = delta_t dx_t + D dy_t    dD = sum_t u_t dy_t

    The states of a span are computed once more, from those before it, and stay in fast
    memory. All in float32.

    Args:
      u, delta, a, b, c, skip: its arguments.
      kept: its third result.
      dy: [B, L, D].  dlast: [B, D, N].
      interpret: compute it by JAX, on any platform.

    Returns:
      Gradients of u and delta in their types; of A, B, C, D and the first state in
      float32.
    """
    layout = Layout.of(u, b).backwards()
    places, rows = Places(layout), layout.rows
    sequences = [layout.positions(t) for t in (u, delta, dy)]
    columns = [layout.columns(t) for t in (b, c)]
    tables = layout.rates(a), layout.tables(skip[:, None], 1)
    end = layout.tables(dlast, rows)
    sums = layout.batch, places.grid[1], *columns[0].shape[2:]
    partial = layout.batch, SUBLANES, end.shape[2]
    wide = [sums, sums, end.shape, partial, end.shape]
    du, ddelta, db, dc, da, dskip, dstate = pl.pallas_call(
        _kernel,
        [
            *[jax.ShapeDtypeStruct(t.shape, t.dtype) for t in sequences[:2]],
            *[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in wide],
        ],
        grid=places.grid,
        in_specs=[
            *[places.positions()] * 3,
            places.table(rows),
            *[places.columns()] * 2,
            places.table(1),
            places.spans(),
            places.states(),
        ],
        out_specs=[
            *[places.positions()] * 2,
            *[places.sums()] * 2,
            places.states(),
            places.states(SUBLANES),
            places.states(),
        ],
        scratch_shapes=[
            pltpu.VMEM((rows, layout.width), jnp.float32),
            pltpu.VMEM((layout.span + 1, rows, layout.width), jnp.float32),
            *places.of_a_turn(numbers=4, sums=2),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=ORDER),
        interpret=interpret,
        name="selective_scan_gradient",
    )(*sequences, tables[0], *columns, tables[1], kept, end)
    return (
        layout.from_positions(du),
        layout.from_positions(ddelta),
        layout.from_tables(jnp.sum(da, 0)),
        layout.from_columns(db),
        layout.from_columns(dc),
        layout.from_tables(jnp.sum(dskip, (0, 1))[None])[:, 0],
        layout.from_tables(dstate),
    )


def _kernel(u, delta, dy, a, b, c, skip, kept, dlast, *rest):
    du, ddelta, db, dc, da, dskip, dstate, behind, states, columns, rows, parts = rest
    tiles, turns = lane_tiles(u.shape[2]), u.shape[1] // STEPS

    @pl.when(pl.program_id(2) == 0)
    def _():
        behind[...] = dlast[0]
        da[...] = jnp.zeros_like(da)
        dskip[...] = jnp.zeros_like(dskip)

    def prepare(here, number, own):
        for tile in tiles:
            read = [t[0, here, tile].astype(jnp.float32) for t in own]
            rows[0, :, tile] = read[1]
            rows[1, :, tile] = read[0] * read[1]
            for i, t in enumerate((read[2:] + read[:1])[:number]):
                rows[2 + i, :, tile] = t

    def there(turn, _):
        here = pl.ds(pl.multiple_of(turn * STEPS, STEPS), STEPS)
        prepare(here, 0, (u, delta))
        column = columns_of((b,), jnp.minimum(turn + 1, turns - 1), turns)
        h = [states[here.start, :, tile] for tile in tiles]
        for t in range(STEPS):
            for k, tile in enumerate(tiles):
                decay = jnp.exp2(rows[0, t : t + 1, tile] * a[:, tile])
                h[k] = decay * h[k] + rows[1, t : t + 1, tile] * columns[0, t]
                states[here.start + t + 1, :, tile] = h[k]
            (columns[0, t],) = column(t)
        return 0

    states[0] = kept[0, 0]
    column = columns_of((b,), 0, turns)
    for t in range(STEPS):
        (columns[0, t],) = column(t)
    jax.lax.fori_loop(0, turns, there, 0)

    lane = jax.lax.broadcasted_iota(jnp.int32, columns.shape[2:], 1)

    def back(index, sums):
        turn = turns - 1 - index
        here = pl.ds(pl.multiple_of(turn * STEPS, STEPS), STEPS)
        prepare(here, 2, (u, delta, dy))
        column = columns_of((b, c), jnp.maximum(turn - 1, 0), turns)
        by_given = [SumOverRows(parts.at[0, k]) for k in range(len(tiles))]
        by_step = [SumOverRows(parts.at[1, k]) for k in range(len(tiles))]
        r = [behind[:, tile] for tile in tiles]
        rates = [da[0, :, tile] for tile in tiles]
        h = [states[here.start + STEPS, :, tile] for tile in tiles]
        found = [jnp.zeros_like(columns[0, 0])] * 2
        for t in reversed(range(STEPS)):
            told, given = [], []
            for k, tile in enumerate(tiles):
                step, added, asked = (rows[i, t : t + 1, tile] for i in range(3))
                before = states[here.start + t, :, tile]
                told.append(h[k] * asked)
                g = r[k] + columns[1, t] * asked
                given.append(g * added)
                by_given[k].add(t, g * columns[0, t])
                r[k] = jnp.exp2(step * a[:, tile]) * g
                both = r[k] * before
                by_step[k].add(t, both * a[:, tile])
                rates[k] += both * step
                h[k] = before
            for i, each in enumerate((given, told)):
                total = jnp.sum(sum(each[1:], each[0]), 1, keepdims=True)
                found[i] = jnp.where(lane == t, total, found[i])
            columns[0, t], columns[1, t] = column(t)
        for k, tile in enumerate(tiles):
            behind[:, tile], da[0, :, tile] = r[k], rates[k]
            step, _, asked, own = (rows[i, :, tile] for i in range(4))
            x, along = (
                jnp.concatenate([each.read(i) for i in range(0, STEPS, SUBLANES)], 0)
                for each in (by_given[k], by_step[k])
            )
            du[0, here, tile] = (x * step + skip[:, tile] * asked).astype(du.dtype)
            changed = x * own + math.log(2) * along
            ddelta[0, here, tile] = changed.astype(ddelta.dtype)
            both = asked * own
            dskip[0, :, tile] += both[:SUBLANES] + both[SUBLANES:]
        return [
            total + pltpu.roll(each, here.start, 1)
            for total, each in zip(sums, found, strict=True)
        ]

    column = columns_of((b, c), turns - 1, turns)
    for t in range(STEPS):
        columns[0, t], columns[1, t] = column(t)
    zeros = [jnp.zeros_like(columns[0, 0])] * 2
    db[0, 0, 0], dc[0, 0, 0] = jax.lax.fori_loop(0, turns, back, zeros)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dstate[0] = behind[...]
