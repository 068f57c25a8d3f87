"""Nonlinear recurrences h_t = f(h_{t-1}, x_t), position by position or all at once.

All positions at once are a system of equations, which Newton's method solves (ParaRNN;
Danieli et al., 2025): from a guess of all h, one step is the linear recurrence

    delta_t = J_t delta_{t-1} + f(h_{t-1}, x_t) - h_t        J_t = df / dh at h_{t-1}

in an associative scan. Cells are elementwise in their D channels, so that J is a block
of S x S a channel for states of S numbers. Gradients are those of the equations at the
h that was found: one linear recurrence backwards, whatever way led there, and exact
where h is.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Weights = Mapping[str, jax.Array]


def gru(weights: Weights, state: jax.Array, inputs: jax.Array) -> jax.Array:
    """The next state h of a gated recurrent unit that mixes no channels (ParaGRU).

        z = sigmoid(a_z h + u_z)    r = sigmoid(a_r h + u_r)
        n = tanh(a_n h r + u_n)     h' = z n + (1 - z) h

    Args:
      weights: `state` [3, D], a of z, r and n.
      state: [..., 1, D].  inputs: u of z, r and n, [..., 3, D].
    """
    (h,), (u_z, u_r, u_n) = _rows(state), _rows(inputs)
    a_z, a_r, a_n = _rows(weights["state"], h.ndim)
    z, r = jax.nn.sigmoid(a_z * h + u_z), jax.nn.sigmoid(a_r * h + u_r)
    n = jnp.tanh(a_n * h * r + u_n)
    return jnp.stack((z * n + (1 - z) * h,), -2)


def lstm(weights: Weights, state: jax.Array, inputs: jax.Array) -> jax.Array:
    """The next state (c, h) of an LSTM that mixes no channels (ParaLSTM).

        f = sigmoid(a_f h + u_f + p_f c)      n = tanh(a_n h + u_n)
        c' = f c + (1 - f) n                  input and forget gate are coupled
        o = sigmoid(a_o h + u_o + p_o c')     h' = o tanh(c')

    Args:
      weights: `state` [3, D], a of f, o and n; `peephole` [2, D], p of f and o.
      state: [..., 2, D].  inputs: u of f, o and n, [..., 3, D].
    """
    (c, h), (u_f, u_o, u_n) = _rows(state), _rows(inputs)
    a_f, a_o, a_n = _rows(weights["state"], h.ndim)
    p_f, p_o = _rows(weights["peephole"], h.ndim)
    f = jax.nn.sigmoid(a_f * h + u_f + p_f * c)
    n = jnp.tanh(a_n * h + u_n)
    c = f * c + (1 - f) * n
    o = jax.nn.sigmoid(a_o * h + u_o + p_o * c)
    return jnp.stack((c, o * jnp.tanh(c)), -2)


class Cell(NamedTuple):
    """A cell: its step, numbers S of its state, the last of which it gives, and the
    rows of its weights."""

    step: Callable[[Weights, jax.Array, jax.Array], jax.Array]
    size: int
    weights: Mapping[str, int]


CELLS: Mapping[str, Cell] = {
    "gru": Cell(gru, 1, {"state": 3}),
    "lstm": Cell(lstm, 2, {"state": 3, "peephole": 2}),
}


class Given(NamedTuple):
    """What the positions are given, all [B, L, ...].

    Attributes:
      inputs: of the cell, [B, L, G, D].
      starts: bool [B, L], where the state before is forgotten; None: nowhere.
      mask: bool [B, L], False where the state stays as it is; None: nowhere.
    """

    inputs: jax.Array
    starts: jax.Array | None = None
    mask: jax.Array | None = None


class Solver(NamedTuple):
    """How a recurrence is solved.

    Attributes:
      name: "sequential", "newton" (`iterations` steps, as released 3) or "tolerance"
        (as many steps as it takes until none starts with a residual above `tolerance`;
        at most L, after which h is exact).
    """

    name: str = "tolerance"
    iterations: int = 3
    tolerance: float = 1e-6


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def solve(
    step: Callable[..., jax.Array],
    solver: Solver,
    weights: Weights,
    given: Given,
    state: jax.Array,
) -> jax.Array:
    """The states after all positions, [B, L, S, D].

    Args:
      step: of a cell.
      state: the one before the first position, [B, S, D].
    """
    move = functools.partial(_move, step, weights)
    return SOLVERS[solver.name](move, given, state, solver)


@solve.defjvp
def _solve_jvp(step, solver, primals, tangents):
    weights, given, state = primals
    h = solve(step, solver, *primals)

    def once(weights, given, state):
        return _move(step, weights, _before(h, state), given)

    _, added = jax.jvp(once, primals, tangents)
    move = functools.partial(_move, step, weights)
    _, slopes = _linearized(move, _before(h, state), given)
    return h, _linear(slopes, added)


def residual(
    step: Callable[..., jax.Array],
    weights: Weights,
    given: Given,
    state: jax.Array,
    h: jax.Array,
) -> jax.Array:
    """max |f(h_{t-1}, x_t) - h_t|: how far states are from solving the recurrence."""
    return _largest(_move(step, weights, _before(h, state), given) - h)


def _sequential(move, given, state, solver):
    del solver

    def body(state, given):
        state = move(state, given)
        return state, state

    moved = jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0), given)
    return jnp.moveaxis(jax.lax.scan(body, state, moved)[1], 0, 1)


def _newton(move, given, state, solver):
    def improve(_, h):
        return _improved(move, given, state, h)[0]

    return jax.lax.fori_loop(0, solver.iterations, improve, _guess(move, given, state))


def _until_tolerance(move, given, state, solver):
    length = given.inputs.shape[1]
    if length == 1:
        return _sequential(move, given, state, solver)

    def goes_on(carry):
        _, largest, count = carry
        return (largest > solver.tolerance) & (count < length)

    def improve(carry):
        h, _, count = carry
        return *_improved(move, given, state, h), count + 1

    h = _guess(move, given, state)
    start = h, jnp.asarray(jnp.inf, h.dtype), 0
    return jax.lax.while_loop(goes_on, improve, start)[0]


SOLVERS: Mapping[str, Callable[..., jax.Array]] = {
    "sequential": _sequential,
    "newton": _newton,
    "tolerance": _until_tolerance,
}


def _guess(move, given, state):
    """The states if each position but the first came after one of zeros."""
    zeros = jnp.zeros((*given.inputs.shape[:2], *state.shape[1:]), state.dtype)
    return move(_before(zeros, state), given)


def _improved(move, given, state, h):
    """h after a step of Newton's method, and the largest residual before it."""
    after, slopes = _linearized(move, _before(h, state), given)
    new = h + _scan(slopes, after - h)
    # Products of large slopes overflow; h after a right one is right all the same.
    return jnp.where(jnp.isfinite(new), new, after), _largest(after - h)


def _largest(difference):
    """Of rows that are NaN nothing is to be expected."""
    difference = jnp.where(jnp.isnan(difference), 0, difference)
    return jnp.max(jnp.abs(difference), initial=0)


def _move(step, weights, before, given):
    """The states after positions [..., S, D], given those before them."""
    inputs, starts, mask = given
    fresh = before
    if starts is not None:
        fresh = jnp.where(starts[..., None, None], 0, before)
    after = step(weights, fresh, inputs)
    return after if mask is None else jnp.where(mask[..., None, None], after, before)


def _before(h, state):
    """The states before the positions, of those after them."""
    return jnp.concatenate((state[:, None], h[:, :-1]), 1)


def _linearized(move, before, given):
    """The states after the positions, and how they move with those before.

    Returns:
      [B, L, S, D], and [B, L, S, S, D] with the derivative of state i by state j of the
      same channel at [:, :, i, j].
    """
    after, along = jax.linearize(lambda before: move(before, given), before)
    size = before.shape[-2]
    unit = jnp.eye(size, dtype=before.dtype).reshape(size, 1, 1, size, 1)
    columns = [along(jnp.broadcast_to(row, before.shape)) for row in unit]
    return after, jnp.stack(columns, -2)


def _linear(slopes, added):
    """y_t = J_t y_{t-1} + b_t; transposed into the same recurrence backwards."""
    none = jnp.zeros_like(added[:, 0])

    def rest(y):
        return y - _times(slopes, _before(y, none))

    def backwards(_, y):
        later = jnp.concatenate((slopes[:, 1:], jnp.zeros_like(slopes[:, :1])), 1)
        return _scan(jnp.swapaxes(later, 2, 3), y, reverse=True)

    def forwards(_, b):
        return _scan(slopes, b)

    return jax.lax.custom_linear_solve(rest, added, forwards, backwards)


def _scan(slopes, added, reverse=False):
    def joined(first, second):
        (a, b), (c, d) = first, second
        return _composed(c, a), _times(c, b) + d

    scan = functools.partial(jax.lax.associative_scan, axis=1, reverse=reverse)
    return scan(joined, (slopes, added))[1]


def _times(slopes, y):
    return jnp.sum(slopes * y[..., None, :, :], -2)


def _composed(second, first):
    return jnp.sum(second[..., :, :, None, :] * first[..., None, :, :, :], -3)


def _rows(t, rank=None):
    """The rows of [..., R, D], each [..., D]; with ones in front up to that rank."""
    rows = [t[..., i, :] for i in range(t.shape[-2])]
    return (
        rows if rank is None else [r.reshape((1,) * (rank - 1) + r.shape) for r in rows]
    )
