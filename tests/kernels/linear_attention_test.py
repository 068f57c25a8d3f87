"""The kernel beside linear attention and a convolution in float64, one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normjax.kernels import linear_attention as module
from normjax.kernels.linear_attention import fits, linear_attention
from normjax.kernels.strips import Strips
from normjax.mixers import SimplifiedLinearAttention
from normjax.mixers.cores import sla
from normjax.plan.topology import devices_of, prepare

EPSILON = 1e-3
SIDES, HEADS = (14, 56), (3, 6)

# map, channels, heads, convolution, rows of a strip: two heads and a half in registers;
# strips whose neighbours lie in the map, beyond it, and farther than the next strip
CASES = {
    "whole": ((7, 6), 192, 3, 5, 7),
    "narrow": ((4, 4), 48, 3, 3, 4),
    "strips": ((8, 16), 96, 3, 5, 4),
    "low": ((6, 5), 160, 5, 5, 2),
}


def drawn(grid, channels, heads, size):
    keys = jax.random.split(jax.random.key(0), 5)
    maps = [jax.random.normal(key, (8, *grid, channels)) for key in keys[:3]]
    q, k = (jnp.maximum(t, 0) for t in maps[:2])
    width = channels // heads
    kernel = jax.random.normal(keys[3], (size, size, width)) / size
    bias = jax.random.normal(keys[4], (width,))
    return *(t.astype(jnp.bfloat16) for t in (q, k, maps[2])), kernel, bias


def one_by_one(q, k, v, kernel, bias, heads):
    q, k, v, kernel, bias = (np.asarray(t, np.float64) for t in (q, k, v, kernel, bias))
    batch, height, width, channels = q.shape
    split = (batch, height * width, heads, channels // heads)
    queries, keys, values = (t.reshape(split) for t in (q, k, v))
    weights = np.einsum("bnhk,bmhk->bhnm", queries, keys)
    weights /= weights.sum(-1, keepdims=True) + EPSILON
    o = np.einsum("bhnm,bmhv->bnhv", weights, values).reshape(q.shape)
    rim = len(kernel) // 2
    for y in range(height):
        for x in range(width):
            o[:, y, x] += np.tile(bias, heads)
            for i in range(-rim, rim + 1):
                for j in range(-rim, rim + 1):
                    if 0 <= y + i < height and 0 <= x + j < width:
                        tap = np.tile(kernel[rim + i, rim + j], heads)
                        o[:, y, x] += tap * v[:, y + i, x + j]
    return o


@pytest.mark.parametrize("name", CASES)
def test_it_is_linear_attention_and_a_convolution(name, monkeypatch):
    grid, channels, heads, size, rows = CASES[name]
    strips = Strips(*grid, size, rows)
    monkeypatch.setattr(module, "_strips", lambda *_: strips)
    arrays = drawn(grid, channels, heads, size)
    assert fits(*arrays[:3], heads, (size, size))
    apply = functools.partial(linear_attention, num_heads=heads, epsilon=EPSILON)
    o = jax.jit(functools.partial(apply, interpret=True))(*arrays)
    assert o.dtype == jnp.bfloat16
    expected = one_by_one(*arrays, heads)
    # half a unit in the last place of 8 bits, of sums that lie between 0 and 4
    np.testing.assert_allclose(np.asarray(o, np.float64), expected, 2**-8, 2**-6)


def test_what_does_not_fit():
    x = jnp.zeros((8, 14, 14, 192), jnp.bfloat16)
    assert fits(x, x, x, 3, (5, 5))
    assert not fits(x.astype(jnp.float32), x, x, 3, (5, 5))
    assert not fits(x, x, x.astype(jnp.float32), 3, (5, 5))
    few = x[:, :7]
    assert not fits(x, few, few, 3, (5, 5))
    few = x[:7]
    assert not fits(few, few, few, 3, (5, 5))
    assert not fits(x, x, x, 4, (5, 5))  # heads of 48 channels
    assert not fits(x, x, x, 3, (3, 5))
    wide = jnp.zeros((8, 4, 2048, 64), jnp.bfloat16)
    assert not fits(wide, wide, wide, 1, (3, 3))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_every_tpu_has_it_for_small_and_for_large_maps(chip):
    prepare([chip])
    mesh = Mesh(np.array(devices_of(chip)[:1]), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())

    def both(*arrays):
        layers = zip(SIDES, HEADS, arrays[::2], arrays[1::2], strict=True)
        return [
            SimplifiedLinearAttention(heads, dtype=jnp.bfloat16).apply(variables, x)
            for _, heads, x, variables in layers
        ]

    arguments = []
    for side, heads in zip(SIDES, HEADS, strict=True):
        x = jax.ShapeDtypeStruct((8, side, side, 96), jnp.bfloat16)
        layer = SimplifiedLinearAttention(heads)
        arguments += [x, jax.eval_shape(layer.init, jax.random.key(0), x)]
    arguments = jax.tree.map(
        lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=whole), arguments
    )
    text = jax.jit(both).lower(*arguments).compile().as_text()
    calls = [line for line in text.splitlines() if "tpu_custom_call" in line]
    assert len(calls) == 3  # at once; sums, then strips


def test_a_layer_gives_it_its_parameters(monkeypatch):
    """The layer with the kernel in place, interpreted, beside itself in float32."""

    def in_place(apart, *given, **settings):
        return linear_attention(*given, **settings, interpret=True)

    layer = SimplifiedLinearAttention(3, epsilon=EPSILON)
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 48))
    variables = layer.init(jax.random.key(1), x)
    exact = layer.apply(variables, x)
    monkeypatch.setattr(sla, "_by_kernels", in_place)
    found = jax.jit(layer.clone(dtype=jnp.bfloat16).apply)(variables, x)
    assert found.dtype == jnp.bfloat16
    limit = 2**-5 * np.abs(exact).max()
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, atol=limit)
