"""Gated feed-forward layers against NumPy, values and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations, fusion, models
from normjax.core.errors import UserError
from normjax.models.gated_mlp import smoothing_scale
from normjax.models.mlps import MLPS
from tests.models import convolutions
from tests.models.convolutions import random_variables

ERF = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + ERF(x / math.sqrt(2))) / 2


# (key, function, derivative)
GATES = [
    ("glu", sigmoid, lambda a: sigmoid(a) * (1 - sigmoid(a))),
    ("bilinear", lambda a: a, np.ones_like),
    ("reglu", lambda a: np.maximum(a, 0), lambda a: (a > 0) * 1.0),
    (
        "geglu",
        gelu,
        lambda a: gelu(a) / a + a * np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi),
    ),
    (
        "swiglu",
        lambda a: a * sigmoid(a),
        lambda a: sigmoid(a) * (1 + a * (1 - sigmoid(a))),
    ),
]


def build(name, hidden=9, activation="tanh", **arguments):
    return MLPS.factory(name)(
        hidden=hidden, activation=activations.build(activation), **arguments
    )


def case(module, shape, dtype=np.float64):
    """(parameters, x, dy) drawn at random."""
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return random_variables(dict(shapes), dtype)["params"], x, dy


def run(module, params, x, dy):
    y, vjp = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
    return y, *vjp(jnp.asarray(dy))


@pytest.mark.parametrize("gate", GATES, ids=lambda g: g[0])
def test_value_and_gradients(gate, x64):
    """y = (f(x W) * (x V)) U, every gradient written out."""
    name, f, slope = gate
    module = build(name)
    params, x, dy = case(module, (4, 5))
    assert {k: set(v) for k, v in params.items()} == {
        "fc1": {"kernel"},
        "fc2": {"kernel"},
    }
    y, dparams, dx = run(module, params, x, dy)
    w, v = np.split(np.asarray(params["fc1"]["kernel"]), 2, 1)
    u = np.asarray(params["fc2"]["kernel"])
    assert w.shape == (5, 6)
    a, b = x @ w, x @ v
    dh = dy @ u.T
    da, db = dh * b * slope(a), dh * f(a)
    np.testing.assert_allclose(y, (f(a) * b) @ u, rtol=1e-10)
    np.testing.assert_allclose(dx, da @ w.T + db @ v.T, rtol=1e-9, atol=1e-12)
    fc1 = np.concatenate([x.T @ da, x.T @ db], 1)
    np.testing.assert_allclose(dparams["fc1"]["kernel"], fc1, rtol=1e-9, atol=1e-12)
    fc2 = (f(a) * b).T @ dy
    np.testing.assert_allclose(dparams["fc2"]["kernel"], fc2, rtol=1e-9, atol=1e-12)


def test_gated_mlp_takes_the_activation_of_its_host(x64):
    module = build("gated_mlp", keep_size=False, use_bias=True, features=2)
    params, x, _ = case(module, (4, 5))
    fc1, fc2 = (jax.tree.map(np.asarray, params[k]) for k in ("fc1", "fc2"))
    a, b = np.split(x @ fc1["kernel"] + fc1["bias"], 2, 1)
    assert a.shape == (4, 9)
    expected = (np.tanh(a) * b) @ fc2["kernel"] + fc2["bias"]
    np.testing.assert_allclose(
        module.apply({"params": params}, x), expected, rtol=1e-10
    )


def test_conv_glu_by_hand(x64):
    module = build("conv_glu", activation="gelu")
    params, x, _ = case(module, (2, 4, 3, 5))
    p = jax.tree.map(np.asarray, params)
    a, v = np.split(x @ p["fc1"]["kernel"] + p["fc1"]["bias"], 2, -1)
    a = convolutions.depthwise(a, p["dwc_kernel"]) + p["dwc_bias"]
    expected = (gelu(a) * v) @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    np.testing.assert_allclose(
        module.apply({"params": params}, x), expected, rtol=1e-10
    )


def test_smooth_swiglu_without_rounding_is_swiglu_exactly():
    plain, smooth = build("swiglu"), build("smooth_swiglu", quantize=False)
    arguments = case(plain, (4, 5), np.float32)
    results = [run(module, *arguments) for module in (plain, smooth)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_smooth_swiglu_rounds_the_product_only():
    """3 bits of mantissa: 1/16 of each entry; 1/2**9 / 224 of the largest below."""
    plain, smooth = build("swiglu"), build("smooth_swiglu")
    params, x, dy = case(plain, (40, 5), np.float32)
    eye = jnp.eye(6, 5)
    params["fc2"]["kernel"] = eye
    (y, dparams, dx), (y8, dparams8, dx8) = (
        run(m, params, x, dy) for m in (plain, smooth)
    )
    largest = jnp.abs(y).max(0, keepdims=True)
    assert (jnp.abs(y8 - y) <= jnp.abs(y) / 16 + largest / 2**9 / 224).all()
    assert jnp.abs(y8 - y).max() > 1e-4
    np.testing.assert_allclose(dx8, dx, rtol=1e-6)
    kernels = (d["fc1"]["kernel"] for d in (dparams8, dparams))
    np.testing.assert_allclose(*kernels, rtol=1e-6)


def test_smoothing_scale_is_a_power_of_two_up_to_448():
    h = jnp.asarray([[1.0, -448.0, 0.0, 3e-5], [0.3, 1.0, 0.0, -7e6]])
    scale = np.asarray(smoothing_scale(h))
    assert scale.shape == (1, 4)
    largest = np.abs(h * scale).max(0)
    np.testing.assert_array_equal(scale[0, [0, 1, 2]], [256, 1, 1])
    assert 224 < largest[3] <= 448
    assert (np.log2(scale) % 1 == 0).all()


@pytest.mark.parametrize("mlp", ["swiglu", "gated_mlp", "conv_glu"])
def test_a_component_of_vit_that_folds(mlp, x64):
    model = models.build(
        "vit",
        num_classes=3,
        dim=8,
        depth=1,
        num_heads=2,
        norm="repbn",
        mlp=mlp,
        activation="xatlu",
        stem={"name": "patch", "patch_size": 2},
    )
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 1)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = random_variables(dict(shapes), np.float64)
    folded, new = fusion.fold(model, variables)
    plan = {fold.path: fold for fold in fusion.plan(model, variables)}
    assert plan["blocks_0/norm2"].into == ("blocks_0/mlp/fc1",)
    before, after = model.apply(variables, images), folded.apply(new, images)
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_a_convolution_does_not_take_sequences():
    with pytest.raises(UserError, match="mlp 'conv_glu' does not accept seq input"):
        models.build("vit", num_classes=3, mlp="conv_glu", pool="cls")
