"""Linear layers against NumPy and against flax.linen.Dense."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.broadcast import computed_once
from normjax.core.dense import Dense, SplitDense, linear

SHAPES = ((5, 3), (2, 5, 3), (2, 2, 4, 3))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def arrays(shape, features=4):
    rng = np.random.default_rng(len(shape))
    x, dy = rng.normal(size=shape), rng.normal(size=(*shape[:-1], features))
    return x, rng.normal(size=(shape[-1], features)), dy


@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_gradients(shape):
    x, kernel, dy = arrays(shape)
    y, pull = jax.vjp(linear, jnp.asarray(x), jnp.asarray(kernel))
    dx, dkernel = pull(jnp.asarray(dy))
    np.testing.assert_allclose(y, np.tensordot(x, kernel, 1), rtol=1e-12)
    np.testing.assert_allclose(dx, np.tensordot(dy, kernel.T, 1), rtol=1e-12)
    flat = [a.reshape(-1, a.shape[-1]) for a in (x, dy)]
    np.testing.assert_allclose(dkernel, flat[0].T @ flat[1], rtol=1e-12)


def test_forward_mode():
    x, kernel, _ = arrays((2, 5, 3))
    _, tangent = jax.jvp(lambda k: linear(x, k), (kernel,), (2 * kernel,))
    np.testing.assert_allclose(tangent, 2 * x @ kernel, rtol=1e-12)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_layers_are_those_of_flax(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float32)
    given = {"dtype": dtype, "bias_init": nn.initializers.normal()}
    reference = nn.Dense(8, **given)
    variables = reference.init(jax.random.key(1), x)
    chex.assert_trees_all_equal(Dense(8, **given).init(jax.random.key(1), x), variables)
    expected = reference.apply(variables, x)
    tolerance = 1e-6 if dtype is None else 1e-2
    parts = SplitDense(2, 4, dtype=dtype).apply(variables, x)
    for y in (Dense(8, **given).apply(variables, x), jnp.concatenate(parts, -1)):
        assert y.dtype == expected.dtype
        chex.assert_trees_all_close(y, expected, rtol=tolerance, atol=tolerance)


def test_a_table_computed_once_stays_as_it_is():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float32)
    y, pull = jax.vjp(jax.jit(computed_once), x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pull(x)[0], x)
