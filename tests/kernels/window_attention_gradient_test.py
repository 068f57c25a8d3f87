"""Gradients by the kernel beside those of attention, window by window, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.window_attention_gradient import fits, pullback
from normjax.mixers import WindowAttention
from tests.kernels.divided import calls_of_gradients

APART = -100.0

# map, channels, heads, window, shift: pairs of windows in two registers; a window
# that is the map; windows and heads that fill no register; rectangles
CASES = {
    "pairs": ((14, 14), 96, 3, (7, 7), 3),
    "one": ((7, 7), 48, 3, (7, 7), 0),
    "narrow": ((8, 12), 160, 5, (4, 4), 1),
    "rectangles": ((4, 6), 16, 2, (2, 3), 1),
}
NAMES = ("q", "k", "v", "bias")


def one_by_one(q, k, v, bias, do, heads, window, shift):
    arrays = [np.asarray(t, np.float64) for t in (q, k, v, do)]
    bias = np.asarray(bias, np.float64)
    _, height, width, channels = q.shape
    head = channels // heads
    made = [np.zeros_like(arrays[0]) for _ in range(3)]
    dbias = np.zeros_like(bias)
    for top in range(shift, height, window[0]):
        for left in range(shift, width, window[1]):
            rows, columns = (np.arange(n) for n in window)
            rows, columns = rows + top, columns + left
            over = 2 * (rows >= height)[:, None] + (columns >= width)
            differ = over.reshape(-1, 1) != over.reshape(-1)
            place = np.ix_(
                range(len(q)), rows % height, columns % width, range(channels)
            )
            queries, keys, values, given = (
                t[place].reshape(len(q), -1, heads, head) for t in arrays
            )
            score = np.einsum("bnhk,bmhk->bhnm", queries, keys)
            score = score * head**-0.5 + bias + APART * differ
            weight = np.exp(score - score.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            slope = np.einsum("bnhk,bmhk->bhnm", given, values)
            slope = weight * (slope - (slope * weight).sum(-1, keepdims=True))
            dbias += slope.sum(0)
            found = (
                np.einsum("bhnm,bmhk->bnhk", slope, keys) * head**-0.5,
                np.einsum("bhnm,bnhk->bmhk", slope, queries) * head**-0.5,
                np.einsum("bhnm,bnhk->bmhk", weight, given),
            )
            for to, each in zip(made, found, strict=True):
                to[place] = each.reshape(len(q), *window, channels)
    return *made, dbias


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_attention_in_every_window(name):
    grid, channels, heads, window, shift = CASES[name]
    keys = jax.random.split(jax.random.key(0), 5)
    draw = functools.partial(jax.random.normal, shape=(16, *grid, channels))
    q, k, v, do = (draw(key).astype(jnp.bfloat16) for key in keys[:4])
    tokens = window[0] * window[1]
    bias = jax.random.normal(keys[4], (heads, tokens, tokens))
    settings = {"num_heads": heads, "window": window, "shift": shift}
    assert fits(q, heads, window, shift)
    apply = functools.partial(pullback, **settings, apart=APART, interpret=True)
    found = jax.jit(apply)(q, k, v, bias, do)
    expected = one_by_one(q, k, v, bias, do, heads, window, shift)
    for name, made, exact in zip(NAMES, found, expected, strict=True):
        # operands of products and results have 8 bits
        made, limit = np.asarray(made, np.float64), 2**-8 * np.abs(exact).max()
        np.testing.assert_allclose(made, exact, 2**-7, limit, err_msg=name)


def test_what_does_not_fit():
    x = jnp.zeros((8, 14, 14, 384), jnp.bfloat16)
    assert fits(x, 12, (7, 7), 3)
    assert not fits(x.astype(jnp.float32), 12, (7, 7), 3)
    assert not fits(x[:7], 12, (7, 7), 3)
    assert not fits(jnp.zeros((8, 84, 84, 96), jnp.bfloat16), 3, (7, 7), 3)


@pytest.mark.parametrize("batch", [8, 7])
def test_a_tpu_has_it_where_it_fits(batch):
    """Seven images have the function."""
    mixer = WindowAttention(num_heads=3, shift=3, dtype=jnp.bfloat16)

    def loss(params, x):
        return jnp.sum(jnp.square(mixer.apply({"params": params}, x, train=True)))

    x = jax.random.normal(jax.random.key(0), (batch, 14, 14, 24), jnp.bfloat16)
    params = mixer.init(jax.random.key(1), x)["params"]
    lowered = (
        jax.jit(jax.grad(loss, (0, 1)))
        .trace(params, x)
        .lower(lowering_platforms=("tpu",))
    )
    assert lowered.as_text().count("tpu_custom_call") == (2 if batch == 8 else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "side"), [("v4:2x2x1", 56), ("v5e:2x2", 14), ("v6e:2x2", 14)]
)
def test_a_tpu_has_it_on_every_device(chip, side):
    mixer = WindowAttention(num_heads=3, shift=3, dtype=jnp.bfloat16)
    calls = calls_of_gradients(chip, mixer, (32, side, side, 96), train=True)
    assert len(calls) == 2
    assert all(f"bf16[{side},{side},8,96]" in line for line in calls)
