"""The kernel of narrow tokens beside LayerNorm and its gradients in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from normjax.kernels import layer_norm as module
from tests.kernels.divided import calls_of_gradients

EPSILON = 1e-2
SHAPE = (8, 5, 7, 96)


def drawn(level=0.0):
    keys = jax.random.split(jax.random.key(0), 4)
    x, dy = (jax.random.normal(key, SHAPE) for key in keys[:2])
    scale, bias = (jax.random.normal(key, SHAPE[-1:]) for key in keys[2:])
    return (x + level).astype(jnp.bfloat16), scale, bias, dy.astype(jnp.bfloat16)


def normalized(x):
    x = np.asarray(x, np.float64)
    centered = x - x.mean(-1, keepdims=True)
    root = np.sqrt(np.square(centered).mean(-1, keepdims=True) + EPSILON)
    return centered / root, root


@pytest.fixture(params=[2048, 128], ids=["one step", "steps and a rest"])
def rows(request, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", request.param)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("level", [0.0, 100.0])
def test_it_is_layer_norm(level):
    x, scale, bias, _ = drawn(level)
    y = module.layer_norm(x, scale, bias, epsilon=EPSILON, interpret=True)
    assert y.dtype == jnp.bfloat16
    expected = normalized(x)[0] * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, 2**-8, 1e-4)


def test_it_is_layer_norm_without_scale_and_bias():
    x, *_ = drawn()
    y = module.layer_norm(x, None, None, epsilon=EPSILON, interpret=True)
    expected = normalized(x)[0]
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, 2**-8, 1e-4)


@pytest.mark.usefixtures("rows")
def test_its_gradients():
    x, scale, _, dy = drawn(3.0)
    found = module.pullback(x, scale, dy, epsilon=EPSILON, interpret=True)
    assert [t.dtype for t in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    n, root = normalized(x)
    by_y, axes = np.asarray(dy, np.float64), (0, 1, 2)
    g = by_y * np.asarray(scale)
    along = (g * n).mean(-1, keepdims=True)
    dx = (g - g.mean(-1, keepdims=True) - n * along) / root
    dscale, dbias = (by_y * n).sum(axes), by_y.sum(axes)
    np.testing.assert_allclose(np.asarray(found[0], np.float64), dx, 2**-8, 1e-4)
    np.testing.assert_allclose(found[1], dscale, 1e-4, 1e-4)
    np.testing.assert_allclose(found[2], dbias, 1e-5, 1e-5)


def test_the_layer_gives_it_its_arguments(monkeypatch):
    """The layer with the kernels in place, interpreted, beside itself in float32."""

    for name in ("layer_norm", "pullback"):
        interpreted = functools.partial(getattr(module, name), interpret=True)
        monkeypatch.setattr(module, name, interpreted)

    def in_place(kernel, function, batched, *rest, pullback):
        del function
        apply = jax.custom_vjp(kernel)
        apply.defvjp(lambda *given: (kernel(*given), given), pullback)
        return apply(*batched, *rest)

    def on_a_tpu(*operands, tpu, default):
        del default
        return tpu(*operands)

    layer = norms.LayerNorm(epsilon=EPSILON)
    x, scale, bias, dy = drawn(1.0)
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)

    def loss(layer, params, x):
        return jnp.sum(layer.apply({"params": params}, x).astype(jnp.float32) * dy)

    params = {"scale": scale, "bias": bias}
    exact = jax.grad(loss, (1, 2))(layer, params, wide)
    monkeypatch.setattr("normjax.norms.layer_norm.kernel_or_function", in_place)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_a_tpu)
    found = jax.grad(loss, (1, 2))(layer.clone(dtype=jnp.bfloat16), params, x)
    chex.assert_trees_all_close(
        jax.tree.map(lambda t: t.astype(jnp.float32), found),
        exact,
        rtol=2**-7,
        atol=2**-6,
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "known"),
    [
        (SHAPE, jnp.bfloat16, True),
        (SHAPE, jnp.float32, False),
        ((8, 35, 96), jnp.bfloat16, False),
        ((7, 5, 7, 96), jnp.bfloat16, False),
        ((8, 5, 7, 64), jnp.bfloat16, False),
        ((8, 5, 7, 128), jnp.bfloat16, False),
    ],
)
def test_what_has_a_kernel(shape, dtype, known):
    layer, x = norms.LayerNorm(dtype=dtype), jnp.zeros(shape, dtype)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    made = str(jax.make_jaxpr(layer.apply)(variables, x))
    assert ("kernel_or_function" in made) == known


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_tpu_has_it_on_every_device(chip):
    layer = norms.LayerNorm(dtype=jnp.bfloat16)
    calls = calls_of_gradients(chip, layer, (32, 56, 56, 96))
    assert len(calls) == 2 and all("bf16[25088,96]" in line for line in calls)
