"""Nonlinear recurrences solved at once against one position after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.mixers.ops.nonlinear_recurrence import (
    CELLS,
    Given,
    Solver,
    _linearized,
    residual,
    solve,
)
from tests.mixers.sequence.recurrent_oracles import gru, lstm, sigmoid

ORACLES = {"gru": gru, "lstm": lstm}
BATCH, LENGTH, WIDTH = 2, 40, 3


def drawn(cell, scale=1.0):
    rng = np.random.default_rng(5)
    size = CELLS[cell].size
    weights = {
        name: rng.normal(0, scale, (rows, WIDTH))
        for name, rows in CELLS[cell].weights.items()
    }
    inputs = rng.normal(size=(BATCH, LENGTH, 3, WIDTH))
    state = rng.normal(0, 0.5, (BATCH, size, WIDTH))
    starts = np.zeros((BATCH, LENGTH), bool)
    starts[0, 17] = starts[1, 5] = True
    mask = np.arange(LENGTH) % 7 != np.array([[3], [6]])
    return weights, (inputs, starts, mask), state


def one_by_one(cell, weights, given, state):
    """In NumPy, row by row; at a start the state before is 0, at padding it stays."""
    inputs, starts, mask = given
    weights = {f"{name}_kernel": w for name, w in weights.items()}
    out = np.zeros((*inputs.shape[:2], *state.shape[1:]))
    for b, t in np.ndindex(inputs.shape[:2]):
        before = state[b] if t == 0 else out[b, t - 1]
        fresh = np.zeros_like(before) if starts[b, t] else before
        after = np.stack(ORACLES[cell](tuple(fresh), inputs[b, t], weights))
        out[b, t] = after if mask[b, t] else before
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def found(cell, solvers, weights, given, state):
    """The states by each solver, in float32, and the residual that is left."""
    step, given = CELLS[cell].step, Given(*given)
    every = [solve(step, solver, weights, given, state) for solver in solvers]
    return [(h, residual(step, weights, given, state, h)) for h in every]


def narrow(arrays):
    return jax.tree.map(lambda a: a if a.dtype == bool else np.float32(a), arrays)


SOLVERS = (Solver(), Solver("sequential"), Solver("newton", 12), Solver("newton", 2))


@pytest.mark.parametrize("cell", CELLS)
def test_every_solver_finds_the_states(cell):
    """The residual says how far a few steps are from it, and a row that is no number
    leaves the others alone."""
    weights, given, state = drawn(cell)
    expected = one_by_one(cell, weights, given, state)
    *good, (rough, rest) = found(cell, SOLVERS, *narrow((weights, given, state)))
    for h, left in good:
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-6)
        assert left < 1e-6
    error = np.abs(np.asarray(rough) - expected).max()
    assert error > 1e-4 and error / 10 < rest < 10 * error
    given[0][0, 3] = np.nan
    (h, _), *_ = found(cell, SOLVERS, *narrow((weights, given, state)))
    np.testing.assert_allclose(h[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_that_of_position_after_position(cell):
    """Forwards and backwards, by differences of the oracle along a direction."""
    weights, given, state = drawn(cell)
    rng, step = np.random.default_rng(6), 1e-6
    dy = rng.normal(size=(BATCH, LENGTH, *state.shape[1:]))
    at = weights, given[0], state
    along = jax.tree.map(lambda t: rng.normal(size=t.shape), at)

    def moved(by):
        new = jax.tree.map(lambda t, d: t + by * d, at, along)
        weights, inputs, state = new
        return np.sum(one_by_one(cell, weights, (inputs, *given[1:]), state) * dy)

    def loss(weights, inputs, state):
        rest = (jnp.asarray(t) for t in given[1:])
        h = solve(CELLS[cell].step, Solver(), weights, Given(inputs, *rest), state)
        return jnp.sum(h * dy)

    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, at)

        @jax.jit
        def both():
            gradients = jax.grad(loss, (0, 1, 2))(*arrays)
            forwards = jax.jvp(loss, arrays, jax.tree.map(jnp.asarray, along))[1]
            products = jax.tree.map(jnp.vdot, gradients, along)
            return sum(jax.tree.leaves(products)), forwards

        actual = both()
    expected = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def jacobian(cell, weights, state, u):
    """From the equations; [S, S, D]."""
    if cell == "gru":
        (h,), (az, ar, an) = state, weights["state"]
        z, r = sigmoid(az * h + u[0]), sigmoid(ar * h + u[1])
        n = np.tanh(an * h * r + u[2])
        inner = z * (1 - n**2) * an * (r + h * r * (1 - r) * ar)
        return np.array([[(1 - z) + (n - h) * z * (1 - z) * az + inner]])
    (c, h), (af, ao, an) = state, weights["state"]
    pf, po = weights["peephole"]
    f, n = sigmoid(af * h + u[0] + pf * c), np.tanh(an * h + u[2])
    new = f * c + (1 - f) * n
    o, t = sigmoid(ao * h + u[1] + po * new), np.tanh(new)
    c_c = f + (c - n) * f * (1 - f) * pf
    c_h = (c - n) * f * (1 - f) * af + (1 - f) * (1 - n**2) * an
    e = t * o * (1 - o) * po + o * (1 - t**2)
    return np.array([[c_c, c_h], [e * c_c, e * c_h + t * o * (1 - o) * ao]])


@pytest.mark.parametrize("cell", CELLS)
def test_slopes_of_a_cell(cell):
    weights, (inputs, *_), state = drawn(cell)
    with jax.enable_x64(True):
        move = functools.partial(CELLS[cell].step, weights)
        before = jnp.asarray(state)[:, None]
        _, slopes = _linearized(move, before, jnp.asarray(inputs[:, :1]))
    for row in range(BATCH):
        expected = jacobian(cell, weights, state[row], inputs[row, 0])
        np.testing.assert_allclose(slopes[row, 0], expected, rtol=1e-12, atol=1e-14)


def test_slopes_whose_products_overflow():
    """As if there were no such products; what follows from so steep cells is chaos."""
    rng = np.random.default_rng(0)
    weights = {"state": rng.normal(0, 30, (3, 8))}
    inputs, state = rng.normal(size=(2, 512, 3, 8)), np.zeros((2, 1, 8))
    arrays = narrow((weights, (inputs, None, None), state))
    (h, _), (expected, _) = found("gru", (Solver(), Solver("sequential")), *arrays)
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-3)
