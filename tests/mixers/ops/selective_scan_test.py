"""All forms of the selective scan against a loop in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.mixers import selective_scan

B, L, D, G, N = 2, 7, 4, 2, 3
FORMS = {
    "sequential": selective_scan.sequential,
    "associative": selective_scan.associative,
    "chunked": functools.partial(selective_scan.chunked, chunk=3),
}


def inputs(length=L):
    rng = np.random.default_rng(0)
    u, b, c = (rng.normal(size=(B, length, *s)) for s in ((D,), (G, N), (G, N)))
    delta = rng.exponential(0.5, (B, length, D))
    delta[:, 2] = 0  # padding
    a, skip = -rng.exponential(1.0, (D, N)), rng.normal(size=D)
    return u, delta, a, b, c, skip, rng.normal(size=(B, D, N))


def loop(u, delta, a, b, c, skip, state):
    y, h = np.zeros(u.shape), state.copy()
    for i in range(B):
        for t in range(u.shape[1]):
            for d in range(D):
                group = d // (D // G)
                step = delta[i, t, d]
                h[i, d] = np.exp(step * a[d]) * h[i, d]
                h[i, d] += step * u[i, t, d] * b[i, t, group]
                y[i, t, d] = h[i, d] @ c[i, t, group] + skip[d] * u[i, t, d]
    return y, h


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form, x64):
    given = inputs()
    rng = np.random.default_rng(1)
    cotangents = tuple(rng.normal(size=t.shape) for t in loop(*given))
    along = [rng.normal(size=t.shape) for t in given]

    @jax.jit
    def run(given, cotangents):
        y, pull = jax.vjp(FORMS[form], *given)
        return y, pull(cotangents)

    outputs, gradients = run(tuple(map(jnp.asarray, given)), cotangents)
    for actual, expected in zip(outputs, loop(*given), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    for i, (g, direction) in enumerate(zip(gradients, along, strict=True)):

        def moved(by, i=i, direction=direction):
            new = [*given[:i], given[i] + by * direction, *given[i + 1 :]]
            return sum(
                np.vdot(*pair) for pair in zip(loop(*new), cotangents, strict=True)
            )

        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.vdot(g, direction), expected, 1e-7, 1e-8)


def test_states_and_sums_of_narrow_inputs_are_float32():
    u, delta, a, b, c, *_ = (jnp.asarray(t, jnp.bfloat16) for t in inputs())
    for form in FORMS.values():
        y, last = jax.eval_shape(form, u, delta, a, b, c)
        assert y.dtype == last.dtype == jnp.float32
