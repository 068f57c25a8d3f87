"""Gradients of linear attention over whole maps and the convolution beside it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels import linear_attention as forward
from normjax.kernels.attention import LANES, SUBLANES
from normjax.kernels.linear_attention import (
    Layer,
    dot,
    inverse,
    same_head,
    some_by_some,
    used,
    within_heads,
)
from normjax.kernels.strips import (
    Strips,
    convolve,
    flatten,
    images_inside,
    surround,
)


def _memory(strips: Strips) -> int:
    """Bytes: seven blocks of bfloat16 twice."""
    register = SUBLANES * LANES * 4
    blocks = 7 * strips.rows * strips.width
    return register * (blocks + 6 * strips.tokens + 2 * strips.surrounded)


def fits(
    q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, size: tuple[int, ...]
) -> bool:
    """Whether `pullback` computes it: what the kernel takes, if it is small enough."""
    height, width = q.shape[1:3]
    whole = Strips(height, width, size[0], height)
    small = _memory(whole) <= forward.MEMORY
    return small and forward.fits(q, k, v, num_heads, size)


def pullback(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kernel: jax.Array,
    do: jax.Array,
    *,
    num_heads: int,
    epsilon: float,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Gradients of `linear_attention` by q, k, v, the kernel and the bias.

    With S = k^T v and t = sum k of a head, d = q . t + epsilon, o = q S / d, g = do / d
    and e = -g . o,

        dq = g S^T + e t      dk = v dS^T + dt      dv = k dS + (kernel reversed * do)
        dS = q^T g            dt = q^T e

    Products of bfloat16 with sums in float32; all else in float32.

    Args:
      q, k, v, do: bfloat16 [B, H, W, D], see `linear_attention`.  kernel: [s, s, K].
      num_heads: heads.  epsilon: added to the denominator.
      interpret: compute it by JAX, on any platform.

    Returns:
      dq, dk, dv in bfloat16; those of the kernel and the bias in float32.
    """
    _, height, width, channels = q.shape
    size, head_width = kernel.shape[0], kernel.shape[-1]
    strips = Strips(height, width, size, height)
    layer = Layer(strips, channels, head_width, epsilon)
    taps = jnp.tile(kernel[::-1, ::-1].reshape(-1, head_width), (1, num_heads))
    taps = jnp.pad(taps.astype(jnp.float32), ((0, 1), (0, 0)))  # there is no bias
    maps = [images_inside(t, interpret) for t in (q, k, v, do)]
    dq, dk, dv, dtaps = _call(maps, taps, layer, interpret)
    dtaps = dtaps.reshape(-1, num_heads, head_width).sum(1)
    found = [jnp.moveaxis(t, 2, 0) for t in (dq, dk, dv)]
    return *found, dtaps[:-1].reshape(kernel.shape), dtaps[-1]


def _call(maps: list, taps, layer: Layer, interpret: bool) -> list:
    strips, (height, width, batch, channels) = layer.strips, maps[0].shape
    shape = (height, width, SUBLANES, LANES)
    whole = pl.BlockSpec(shape, lambda t, b, s: (s, 0, b, t))
    weights = pl.BlockSpec((len(taps), LANES), lambda t, b, s: (0, t))
    flat = pltpu.VMEM((strips.tokens * SUBLANES, LANES), jnp.float32)
    around = pltpu.VMEM((strips.surrounded * SUBLANES, LANES), jnp.float32)
    made = jax.ShapeDtypeStruct(maps[0].shape, maps[0].dtype)
    return pl.pallas_call(
        functools.partial(_kernel, layer=layer),
        out_shape=[made] * 3 + [jax.ShapeDtypeStruct(taps.shape, jnp.float32)],
        grid=(-(-channels // LANES), batch // SUBLANES, 1),
        in_specs=[whole] * 4 + [weights],
        out_specs=[whole] * 3 + [weights],
        scratch_shapes=[
            *[flat] * 6,
            *[around] * 2,
            pltpu.VMEM((len(taps) * SUBLANES, LANES), jnp.float32),
        ],
        interpret=interpret,
        name="linear_attention_gradient",
    )(*maps, taps)


def _kernel(q, k, v, do, taps, dq, dk, dv, dtaps, *scratch, layer: Layer):
    queries, keys, by_query, by_key, by_value, near, values, given, sums = scratch
    strips, row = layer.strips, 2 * layer.strips.rim
    flatten(q, queries, strips)
    flatten(k, keys, strips)
    surround(v, values, strips)
    surround(do, given, strips)
    same, there = same_head(layer), used(layer, pl.program_id(0))

    def some(images):
        arrays = []
        for to, first in ((queries, 0), (keys, 0), (values, row), (given, row)):
            own = [to[strips.of_image(image, first), :] for image in images]
            if there is not None:  # whatever lies behind the channels, NaN too
                own = [jnp.where(there, t, 0) for t in own]
            arrays.append(own)
        found = _of_images(arrays, same, layer.epsilon)
        for to, own in zip((by_query, by_key, by_value), found, strict=True):
            for image, each in zip(images, own, strict=True):
                to[strips.of_image(image), :] = each

    some_by_some(some)
    convolve(given, taps, near, strips)
    for number in range(strips.rows):
        line = strips.line(number)
        total = by_value[line, :] + near[line, :]
        for to, each in ((dq, by_query[line, :]), (dk, by_key[line, :]), (dv, total)):
            to[number] = each.reshape(-1, SUBLANES, LANES).astype(to.dtype)
    _correlate(given, values, sums, strips)

    @pl.when(pl.program_id(1) == 0)
    def _():
        dtaps[...] = jnp.zeros_like(dtaps)

    dtaps[...] += jnp.sum(sums[...].reshape(-1, SUBLANES, LANES), 1)


def _of_images(arrays: list, same, epsilon: float) -> tuple[list, ...]:
    """The gradients of each image, step by step of all."""
    q, k, v, do = arrays
    ones = jnp.where(same, 1.0, 0.0)
    pair = _each(lambda k, v: within_heads(_turned(k, v), same), k, v)
    total = _each(lambda k: jnp.sum(k, 0, keepdims=True), k)
    below = _each(lambda q, total: dot(q * total, ones) + epsilon, q, total)
    above = _each(dot, q, pair)
    factor = _each(inverse, below)
    g = _each(jnp.multiply, do, factor)
    o = _each(jnp.multiply, above, factor)
    e = _each(lambda g, o: -_exactly(g * o, ones), g, o)
    by_pair = _each(lambda q, g: within_heads(_turned(q, g), same), q, g)
    by_total = _each(lambda q, e: jnp.sum(q * e, 0, keepdims=True), q, e)
    along = _each(_against, g, pair)
    dq = _each(lambda x, e, total: x + e * total, along, e, total)
    dk = _each(lambda v, pair, total: _against(v, pair) + total, v, by_pair, by_total)
    return dq, dk, _each(dot, k, by_pair)


def _each(function, *lists: list) -> list:
    return [function(*given) for given in zip(*lists, strict=True)]


def _turned(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^T b."""
    return dot(jnp.transpose(a.astype(jnp.bfloat16)), b)


def _against(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b^T."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    contracted = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, contracted, preferred_element_type=jnp.float32)


def _exactly(a: jax.Array, ones: jax.Array) -> jax.Array:
    """Sums over heads of float32: of what bfloat16 keeps and of what it leaves."""
    high = a.astype(jnp.bfloat16).astype(jnp.float32)
    return dot(high, ones) + dot(a - high, ones)


def _correlate(given, values, sums, strips: Strips) -> None:
    """Sums over positions of `given` there and the values that a tap sees from there.

    The last are those of `given` alone. Sums over eight images are not added up.
    """
    size, width, rim = strips.size, strips.width, strips.rim
    sums[...] = jnp.zeros_like(sums)

    def place(tap: int) -> slice:
        return slice(tap * SUBLANES, (tap + 1) * SUBLANES)

    def column(x: Any, number: int) -> Any:
        return x[number * SUBLANES : (number + 1) * SUBLANES]

    def line(row, _):
        g = given[strips.line(2 * rim + row), :]
        sums[place(size**2)] += sum(column(g, c) for c in range(width))
        for i in range(size):
            x = values[strips.line(rim + row + i), :]
            for j in range(size):
                seen = [c for c in range(width) if 0 <= c + j - rim < width]
                products = (column(g, c) * column(x, c + j - rim) for c in seen)
                sums[place(size * i + j)] += sum(products)
        return 0

    jax.lax.fori_loop(0, strips.rows, line, 0)
