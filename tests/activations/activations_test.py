"""Activations against float64 formulas, values and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations
from normjax.core.errors import UserError

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
    (
        "scaled_relu",
        {},
        1.7139588594436646 * np.maximum(X, 0),
        1.7139588594436646 * (X > 0),
    ),
    (
        "scaled_gelu",
        {},
        1.7015043497085571 * X * PHI,
        1.7015043497085571 * (PHI + X * DENSITY),
    ),
    (
        "scaled_silu",
        {},
        1.7881293296813965 * X * SIGMOID,
        1.7881293296813965 * SIGMOID * (1 + X * (1 - SIGMOID)),
    ),
    ("silu", {}, X * SIGMOID, SIGMOID * (1 + X * (1 - SIGMOID))),
    ("relu6", {}, np.clip(X, 0, 6), ((X > 0) & (X < 6)) * 1.0),
    (
        "leaky_relu",
        {"slope": 0.1},
        np.where(X >= 0, X, 0.1 * X),
        np.where(X >= 0, 1, 0.1),
    ),
    ("tanh", {}, np.tanh(X), 1 / np.cosh(X) ** 2),
    ("sigmoid", {}, SIGMOID, SIGMOID * (1 - SIGMOID)),
    ("identity", {}, X, np.ones_like(X)),
    ("smelu", {"beta": 0.0}, np.maximum(X, 0), (X > 0) * 1.0),
    (
        "smelu",
        {"beta": 0.7},
        np.select([X <= -0.7, X < 0.7], [0 * X, (X + 0.7) ** 2 / 2.8], X),
        np.clip((X + 0.7) / 1.4, 0, 1),
    ),
    (
        "relu_interpolation",
        {"factor": 0.6, "scale": 1.0, "slope": 0.1},
        0.4 * np.maximum(X, 0.1 * X) + 0.6 * X * PHI,
        0.4 * np.where(X > 0, 1, 0.1) + 0.6 * (PHI + X * DENSITY),
    ),
    (
        "relu_interpolation",
        {"factor": 0.3, "smooth": "silu"},
        0.7 * np.maximum(X, 0) + 0.3 * X * SIGMOID,
        0.7 * (X >= 0) + 0.3 * SIGMOID * (1 + X * (1 - SIGMOID)),
    ),
    # The gradient is not the derivative.
    ("helu", {"alpha": 0.13}, np.maximum(X, 0), (X > -0.13) * 1.0),
    ("helu", {"alpha": 0.0}, np.maximum(X, 0), (X > 0) * 1.0),
    ("fatrelu", {"threshold": 0.21}, X * (X >= 0.21), (X >= 0.21) * 1.0),
    (
        "swish",
        {"beta": 1.0, "trainable": False},
        X * SIGMOID,
        SIGMOID * (1 + X * (1 - SIGMOID)),
    ),
]

ARCTAN = np.arctan(X) / math.pi + 0.5
SWISH = 1 / (1 + np.exp(-1.3 * X))


def expanded(gate, slope, alpha=0.2):
    """Value, derivative, derivative by alpha of x (g (1 + 2 alpha) - alpha)."""
    wide = gate * (1 + 2 * alpha) - alpha
    return X * wide, wide + X * slope * (1 + 2 * alpha), X * (2 * gate - 1)


# (key, arguments, parameter, values, derivatives, derivatives by the parameter)
LEARNED = [
    (
        "swish",
        {"beta": 1.3},
        "beta",
        X * SWISH,
        SWISH * (1 + 1.3 * X * (1 - SWISH)),
        X**2 * SWISH * (1 - SWISH),
    ),
    (
        "prelu",
        {"slope_init": 0.3, "per_channel": False},
        "slope",
        np.where(X > 0, X, 0.3 * X),
        np.where(X > 0, 1, 0.3),
        np.minimum(X, 0),
    ),
    (
        "xatlu",
        {"alpha_init": 0.2},
        "alpha",
        *expanded(ARCTAN, 1 / math.pi / (1 + X**2)),
    ),
    ("xgelu", {"alpha_init": 0.2}, "alpha", *expanded(PHI, DENSITY)),
    (
        "xsilu",
        {"alpha_init": 0.2},
        "alpha",
        *expanded(SIGMOID, SIGMOID * (1 - SIGMOID)),
    ),
]


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 3e-6)])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}{c[1]}")
def test_value_and_gradient(case, dtype, limit, users_compiler):
    key, arguments, values, slopes = case
    with jax.enable_x64(dtype == "float64"):
        module = activations.build(key, **arguments)()
        x = jnp.asarray(X, dtype)

        # Quickly compiled hyperbolic tangents are off by more than the limit.
        @functools.partial(jax.jit, compiler_options=users_compiler)
        def run(x):
            y, vjp = jax.vjp(lambda x: module.apply({}, x), x)
            return y, vjp(jnp.ones_like(x))[0]

        y, dx = run(x)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, values, atol=limit)
        np.testing.assert_allclose(dx, slopes, atol=limit)


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-11), ("float32", 3e-6)])
@pytest.mark.parametrize("case", LEARNED, ids=lambda c: c[0])
def test_value_and_gradients_of_learned_activations(case, dtype, limit):
    key, arguments, name, values, slopes, by_parameter = case
    dy = np.cos(X)
    with jax.enable_x64(dtype == "float64"):
        module = activations.build(key, **arguments, param_dtype=dtype)()
        x = jnp.asarray(X, dtype)
        variables = module.init(jax.random.key(0), x)
        y, vjp = jax.vjp(module.apply, variables, x)
        dparams, dx = vjp(jnp.asarray(dy, dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, values, atol=limit)
    np.testing.assert_allclose(dx, slopes * dy, atol=limit)
    expected = np.sum(by_parameter * dy)
    scale = np.sum(np.abs(by_parameter * dy))
    assert abs(np.asarray(dparams["params"][name]) - expected) < limit * scale


@pytest.mark.parametrize(
    ("key", "arguments"), [("prelu", {}), ("swish", {"per_channel": True})]
)
def test_one_parameter_per_channel(key, arguments):
    """A channel with its own parameter is one with a parameter for all."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    module = activations.build(key, **arguments)()
    ((name, shape),) = module.init(jax.random.key(0), x)["params"].items()
    assert shape.shape == (3,)
    values = jnp.asarray([0.1, 0.7, -0.4])
    y = module.apply({"params": {name: values}}, x)
    single = activations.build(key, per_channel=False)()
    for c in range(3):
        expected = single.apply({"params": {name: values[c]}}, x[..., c])
        np.testing.assert_allclose(y[..., c], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        ("smelu", {"beta": -1.0}),
        ("helu", {"alpha": -1.0}),
        ("fatrelu", {"threshold": -1.0}),
    ],
)
def test_negative_widths(spec):
    with pytest.raises(UserError, match="must be at least 0, got -1"):
        activations.build(spec[0], **spec[1])().apply({}, jnp.zeros(3))


@pytest.mark.parametrize("key", [entry.name for entry in activations.ACTIVATIONS])
def test_bfloat16_is_rounded_once(key):
    x = jnp.asarray(X, jnp.bfloat16)
    module = activations.build(key)()
    y, variables = module.init_with_output(jax.random.key(0), x)
    wide = module.apply(variables, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("key", ["scaled_relu", "scaled_gelu", "scaled_silu"])
def test_scaled_activations_keep_the_variance_of_a_standard_normal(key):
    """By quadrature; the published gains of GELU and SiLU were sampled."""
    x = np.linspace(-12, 12, 24001)
    weights = np.exp(-(x**2) / 2)
    y = np.asarray(activations.build(key)().apply({}, jnp.asarray(x, jnp.float32)))
    y = y.astype(np.float64)
    mean = np.average(y, weights=weights)
    assert abs(np.average((y - mean) ** 2, weights=weights) - 1) < 1e-2
