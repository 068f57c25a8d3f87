"""Gradients by the kernel beside those of weights and shifted maps in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.linear_attention_gradient import fits, pullback
from normjax.mixers import SimplifiedLinearAttention
from tests.kernels.divided import calls_of_gradients

EPSILON = 1e-3

# map, channels, heads, convolution: registers that are full, and two and a half heads
CASES = {"full": ((4, 6), 128, 4, 3), "part": ((7, 6), 192, 3, 5)}
NAMES = ("q", "k", "v", "kernel", "bias")


def by_weights(q, k, v, kernel, bias, heads):
    batch, height, width, channels = q.shape
    split = (batch, height * width, heads, channels // heads)
    queries, keys, values = (t.reshape(split) for t in (q, k, v))
    weights = jnp.einsum("bnhk,bmhk->bhnm", queries, keys)
    weights = weights / (weights.sum(-1, keepdims=True) + EPSILON)
    o = jnp.einsum("bhnm,bmhv->bnhv", weights, values).reshape(q.shape)
    size = len(kernel)
    rim = size // 2
    v = jnp.pad(v, ((0, 0), (rim, rim), (rim, rim), (0, 0)))
    for i in range(size):
        for j in range(size):
            tap = jnp.tile(kernel[i, j], heads).reshape(1, 1, 1, -1)
            o = o + tap * v[:, i : i + height, j : j + width]
    return o + jnp.tile(bias, heads).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_both_together(name):
    grid, channels, heads, size = CASES[name]
    keys = jax.random.split(jax.random.key(0), 6)
    draw = functools.partial(jax.random.normal, shape=(16, *grid, channels))
    q, k, v, do = (draw(key).astype(jnp.bfloat16) for key in keys[:4])
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    width = channels // heads
    kernel = jax.random.normal(keys[4], (size, size, width)) / size
    bias = jax.random.normal(keys[5], (width,))
    assert fits(q, k, v, heads, (size, size))
    apply = functools.partial(pullback, num_heads=heads, epsilon=EPSILON)
    found = jax.jit(functools.partial(apply, interpret=True))(q, k, v, kernel, do)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(t, np.float64)) for t in (q, k, v, kernel, bias)]
        given = jnp.asarray(np.asarray(do, np.float64))
        expected = jax.vjp(lambda *a: by_weights(*a, heads), *wide)[1](given)
    for name, made, exact in zip(NAMES, found, expected, strict=True):
        made, exact = np.asarray(made, np.float64), np.asarray(exact)
        # operands of products and results have 8 bits
        limit = 2**-8 * np.abs(exact).max()
        np.testing.assert_allclose(made, exact, 2**-7, limit, err_msg=name)


def test_what_is_too_large():
    x = jnp.zeros((8, 14, 14, 192), jnp.bfloat16)
    assert fits(x, x, x, 3, (5, 5))
    assert not fits(x.astype(jnp.float32), x, x, 3, (5, 5))
    x = jnp.zeros((8, 28, 28, 192), jnp.bfloat16)
    assert not fits(x, x, x, 6, (5, 5))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_tpu_has_it_on_every_device(chip):
    layer = SimplifiedLinearAttention(3, dtype=jnp.bfloat16)
    calls = calls_of_gradients(chip, layer, (32, 14, 14, 192))
    assert len(calls) == 2 and all("bf16[14,14,8,192]" in line for line in calls)
