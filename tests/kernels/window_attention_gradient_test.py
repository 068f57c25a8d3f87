"""Gradients by the kernel beside those of attention, window by window, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.window_attention_gradient import pullback

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
    apply = functools.partial(pullback, **settings, apart=APART, interpret=True)
    found = jax.jit(apply)(q, k, v, bias, do)
    expected = one_by_one(q, k, v, bias, do, heads, window, shift)
    for name, made, exact in zip(NAMES, found, expected, strict=True):
        # operands of products and results have 8 bits
        made, limit = np.asarray(made, np.float64), 2**-8 * np.abs(exact).max()
        print(name, np.abs(made-exact).max()/np.abs(exact).max())
        np.testing.assert_allclose(made, exact, 2**-7, limit, err_msg=name)
