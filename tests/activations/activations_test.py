"""Activations against float64 formulas, values and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations

X = np.linspace(-6, 6, 241)
PHI = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X])
DENSITY = np.exp(-(X**2) / 2) / math.sqrt(2 * math.pi)
SIGMOID = 1 / (1 + np.exp(-X))
INNER = math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)
SLOPE = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * X**2)

# (key, arguments, values, derivatives)
CASES = [
    ("gelu", {}, X * PHI, PHI + X * DENSITY),
    (
        "gelu",
        {"approximate": True},
        0.5 * X * (1 + np.tanh(INNER)),
        0.5 * (1 + np.tanh(INNER)) + 0.5 * X * SLOPE / np.cosh(INNER) ** 2,
    ),
    ("relu", {}, np.maximum(X, 0), (X > 0) * 1.0),
    ("silu", {}, X * SIGMOID, SIGMOID * (1 + X * (1 - SIGMOID))),
]


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 3e-6)])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}{c[1]}")
def test_value_and_gradient(case, dtype, limit):
    key, arguments, values, slopes = case
    with jax.enable_x64(dtype == "float64"):
        module = activations.build(key, **arguments)()
        x = jnp.asarray(X, dtype)
        y, vjp = jax.vjp(lambda x: module.apply({}, x), x)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, values, atol=limit)
        np.testing.assert_allclose(vjp(jnp.ones_like(x))[0], slopes, atol=limit)


@pytest.mark.parametrize("key", [entry.name for entry in activations.ACTIVATIONS])
def test_bfloat16_is_rounded_once(key):
    x = jnp.asarray(X, jnp.bfloat16)
    y = activations.build(key)().apply({}, x)
    wide = activations.build(key)().apply({}, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=2e-2, atol=1e-6)
