"""Gradients of the selective scan, from the last position to the first."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import SUBLANES
from normjax.kernels.scan_layout import STEPS, Layout
from normjax.kernels.selective_scan import (
    ORDER,
    Places,
    SumOverRows,
    at_step,
    gather,
    lanes,
    some_tiles,
    spread,
)


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
    layout = Layout.of(u, b)
    sequences = [layout.positions(t) for t in (u, delta, dy)]
    columns = [layout.columns(t) for t in (b, c)]
    given = [*sequences, layout.rates(a), *columns, layout.tables(skip[:, None], 1)]
    given += [kept, layout.tables(dlast, layout.rows)]
    du, ddelta, db, dc, da, dskip, dstate = _call(given, layout, interpret)
    return (
        layout.from_positions(du),
        layout.from_positions(ddelta),
        layout.from_tables(jnp.sum(da, 0)),
        layout.from_columns(db),
        layout.from_columns(dc),
        layout.from_tables(jnp.sum(dskip, (0, 1))[None])[:, 0],
        layout.from_tables(dstate),
    )


def _call(given: Sequence[jax.Array], layout: Layout, interpret: bool) -> list:
    u, delta, *_, c, _, _, end = given
    places, rows = Places(layout, reverse=True), layout.rows
    sums = layout.batch, layout.grid[1], *c.shape[2:]
    partial = layout.batch, SUBLANES, end.shape[2]
    wide = [sums, sums, end.shape, partial, end.shape]
    positions, columns, states = places.positions(), places.columns(), places.states()
    return pl.pallas_call(
        _kernel,
        [
            *[jax.ShapeDtypeStruct(t.shape, t.dtype) for t in (u, delta)],
            *[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in wide],
        ],
        grid=layout.grid,
        in_specs=[
            *[positions] * 3,
            places.table(rows),
            *[columns] * 2,
            places.table(1),
            places.before(),
            states,
        ],
        out_specs=[
            *[positions] * 2,
            *[places.sums()] * 2,
            states,
            places.states(SUBLANES),
            states,
        ],
        scratch_shapes=[
            pltpu.VMEM((rows, layout.width), jnp.float32),
            pltpu.VMEM((layout.span + 1, rows, layout.together), jnp.float32),
            *[places.wide()] * 2,
            *places.of_a_turn(numbers=4, sums=2),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=ORDER),
        interpret=interpret,
        name="selective_scan_gradient",
    )(*given)


class _Turn(NamedTuple):
    """What the steps of a turn read and write.

    Attributes:
      u, delta, dy, a, skip: of the call.  du, ddelta, da, dskip: its results.
      behind: a_{t+1} g_{t+1} of the step after.  states: h before each step, and last.
      columns: B and C by `spread`.  sums: their gradients before the sum over lanes.
      rows: delta, delta u, dy, u.  parts: of two `SumOverRows`.
    """

    u: Any
    delta: Any
    dy: Any
    a: Any
    skip: Any
    du: Any
    ddelta: Any
    da: Any
    dskip: Any
    behind: Any
    states: Any
    columns: Any
    sums: Any
    rows: Any
    parts: Any


def _kernel(u, delta, dy, a, b, c, skip, kept, dlast, *rest):
    du, ddelta, db, dc, da, dskip, dstate, behind, *scratch = rest
    given = _Turn(u, delta, dy, a, skip, du, ddelta, da, dskip, behind, *scratch)

    @pl.when(pl.program_id(2) == 0)
    def _():
        behind[...] = dlast[0]
        da[...] = jnp.zeros_like(da)
        dskip[...] = jnp.zeros_like(dskip)

    spread((b, c), given.columns)
    turns = u.shape[1] // STEPS
    for number, tiles in enumerate(some_tiles(u.shape[2], given.rows.shape[2])):
        for k, tile in enumerate(tiles):
            given.states[0, :, lanes(k)] = kept[0, 0, :, tile]
        jax.lax.fori_loop(0, turns, functools.partial(_there, tiles, given), 0)
        back = functools.partial(_back, tiles, given, number > 0)
        jax.lax.fori_loop(0, turns, back, 0)
    gather(given.sums, (db, dc))

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dstate[0] = behind[...]


def _there(tiles: Sequence[slice], given: _Turn, turn: Any, carry: Any) -> Any:
    """States of the steps of a turn."""
    rows, states, count = given.rows, given.states, len(given.a)
    start = pl.multiple_of(turn * STEPS, STEPS)
    here = pl.ds(start, STEPS)
    for k, tile in enumerate(tiles):
        read = (t[0, here, tile].astype(jnp.float32) for t in (given.u, given.delta))
        own, step = read
        rows[0, :, lanes(k)], rows[1, :, lanes(k)] = step, step * own
    h = [states[start, :, lanes(k)] for k in range(len(tiles))]
    for t in range(STEPS):
        b = given.columns[0, at_step(turn, t, count)]
        for k, tile in enumerate(tiles):
            step, added = (rows[i, t : t + 1, lanes(k)] for i in range(2))
            h[k] = jnp.exp2(step * given.a[:, tile]) * h[k] + added * b
            states[start + t + 1, :, lanes(k)] = h[k]
    return carry


def _back(
    tiles: Sequence[slice], given: _Turn, more: bool, index: Any, carry: Any
) -> Any:
    """Gradients of the steps of a turn, the last one first."""
    u, delta, dy, a, _, _, _, da, _, behind, states, *scratch = given
    columns, sums, rows, parts = scratch
    turn, count = u.shape[1] // STEPS - 1 - index, len(a)
    start = pl.multiple_of(turn * STEPS, STEPS)
    here = pl.ds(start, STEPS)
    for k, tile in enumerate(tiles):
        read = (t[0, here, tile].astype(jnp.float32) for t in (u, delta, dy))
        own, step, asked = read
        for i, t in enumerate((step, step * own, asked, own)):
            rows[i, :, lanes(k)] = t
    by_added, by_step = (
        [SumOverRows(parts.at[i, k]) for k in range(len(tiles))] for i in range(2)
    )
    r = [behind[:, tile] for tile in tiles]
    rates = [da[0, :, tile] for tile in tiles]
    h = [states[start + STEPS, :, lanes(k)] for k in range(len(tiles))]
    for t in reversed(range(STEPS)):
        place = at_step(turn, t, count)
        b, c = (columns[i, place] for i in range(2))
        told, brought = [], []
        for k, tile in enumerate(tiles):
            step, added, asked = (rows[i, t : t + 1, lanes(k)] for i in range(3))
            before = states[start + t, :, lanes(k)]
            told.append(h[k] * asked)
            g = r[k] + c * asked
            brought.append(g * added)
            by_added[k].add(t, g * b)
            r[k] = jnp.exp2(step * a[:, tile]) * g
            both = r[k] * before
            by_step[k].add(t, both * a[:, tile])
            rates[k] += both * step
            h[k] = before
        for i, each in enumerate((brought, told)):
            total = sum(each[1:], each[0])
            sums[i, place] = sums[i, place] + total if more else total
    for k, tile in enumerate(tiles):
        behind[:, tile], da[0, :, tile] = r[k], rates[k]
        x, along = (
            jnp.concatenate([each.read(i) for i in range(0, STEPS, SUBLANES)], 0)
            for each in (by_added[k], by_step[k])
        )
        _write(x, along, [rows[i, :, lanes(k)] for i in range(4)], here, tile, given)
    return carry


def _write(
    x: jax.Array, along: jax.Array, rows: Sequence[jax.Array], here, tile, given: _Turn
) -> None:
    """Gradients of u, delta and D by those of delta u and by A . s, over log(2)."""
    step, _, asked, own = rows
    change = x * step + given.skip[:, tile] * asked
    given.du[0, here, tile] = change.astype(given.du.dtype)
    change = x * own + math.log(2) * along
    given.ddelta[0, here, tile] = change.astype(given.ddelta.dtype)
    both = asked * own
    given.dskip[0, :, tile] += both[:SUBLANES] + both[SUBLANES:]
