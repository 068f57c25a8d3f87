"""The kernel beside attention in float64, window by window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.window_attention import fits, window_attention

APART = -100.0

# map, channels, heads, window, shift: pairs of windows in two registers; a window
# that is the map; windows and heads that fill no register; rectangles
CASES = {
    "pairs": ((14, 14), 256, 4, (7, 7), 3),
    "one": ((7, 7), 48, 3, (7, 7), 0),
    "narrow": ((8, 12), 160, 5, (4, 4), 1),
    "rectangles": ((4, 6), 16, 2, (2, 3), 1),
}


def drawn(grid, channels, heads, window):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (8, *grid, channels)
    maps = [2 * jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:3]]
    tokens = window[0] * window[1]
    return *maps, jax.random.normal(keys[3], (heads, tokens, tokens))


def one_by_one(q, k, v, bias, heads, window, shift):
    q, k, v, bias = (np.asarray(t, np.float64) for t in (q, k, v, bias))
    _, height, width, channels = q.shape
    o = np.zeros_like(q)
    for top in range(shift, height, window[0]):
        for left in range(shift, width, window[1]):
            rows, columns = (np.arange(n) for n in window)
            rows, columns = rows + top, columns + left
            over = 2 * (rows >= height)[:, None] + (columns >= width)
            differ = over.reshape(-1, 1) != over.reshape(-1)
            place = np.ix_(range(8), rows % height, columns % width, range(channels))
            tokens = (
                t[place].reshape(8, -1, heads, channels // heads) for t in (q, k, v)
            )
            queries, keys, values = tokens
            score = np.einsum("bnhk,bmhk->bhnm", queries, keys)
            score = score * (channels // heads) ** -0.5 + bias + APART * differ
            weight = np.exp(score - score.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            found = np.einsum("bhnm,bmhk->bnhk", weight, values)
            o[place] = found.reshape(8, len(rows), len(columns), channels)
    return o


@pytest.mark.parametrize("name", CASES)
def test_it_is_attention_in_every_window(name):
    grid, channels, heads, window, shift = CASES[name]
    arrays = drawn(grid, channels, heads, window)
    assert fits(arrays[0], heads, window, shift)
    apply = functools.partial(
        window_attention, num_heads=heads, window=window, shift=shift, apart=APART
    )
    o = jax.jit(functools.partial(apply, interpret=True))(*arrays)
    assert o.dtype == jnp.bfloat16
    expected = one_by_one(*arrays, heads, window, shift)
    # of weights and results half a unit in the last place of 8 bits, values to 8
    np.testing.assert_allclose(np.asarray(o, np.float64), expected, 2**-8, 2**-6)


def test_what_does_not_fit():
    x = jnp.zeros((8, 14, 14, 64), jnp.bfloat16)
    assert fits(x, 2, (7, 7), 3)
    assert not fits(x.astype(jnp.float32), 2, (7, 7), 3)
    assert not fits(x[:7], 2, (7, 7), 3)
    assert not fits(x, 16, (7, 7), 3)  # heads of 4 channels
    assert not fits(jnp.zeros((8, 448, 448, 64), jnp.bfloat16), 2, (7, 7), 3)
