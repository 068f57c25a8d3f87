"""Linear attention over whole maps and a depthwise convolution of the values."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import LANES, SUBLANES
from normjax.kernels.strips import (
    Strips,
    convolve,
    flatten,
    images_inside,
    surround,
)

MEMORY = 15 * 2**20  # a TPU v4 has 16 MiB
_TOGETHER = 4  # images of a strip whose steps alternate
_reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal  # JAX 0.12 moved it


class Layer(NamedTuple):
    strips: Strips
    channels: int
    head_width: int
    epsilon: float


def _memory(strips: Strips) -> int:
    """Bytes: blocks twice, the next ones come while these are worked through."""
    register = SUBLANES * LANES * 4
    row, flat = strips.width * register, strips.tokens * register
    around = strips.surrounded * register
    if strips.count == 1:
        return 4 * strips.rows * row + 4 * flat + around
    sums = 2 * SUBLANES * LANES * LANES * 2
    return (2 * strips.rows + strips.given) * row + 3 * flat + around + sums


def _strips(height: int, width: int, size: int) -> Strips | None:
    """The highest ones, beyond whose neighbours no tap sees; None: too large."""
    for rows in range(height, max(size // 2, 1) - 1, -1):
        strips = Strips(height, width, size, rows)
        if height % rows == 0 and _memory(strips) <= MEMORY:
            return strips
    return None


def fits(
    q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, size: tuple[int, ...]
) -> bool:
    """Whether `linear_attention` computes it: types, sizes and memory.

    Args:
      q: [B, H, W, D].  k, v: [B, H', W', D].  size: of the convolution.
    """
    batch, height, width, channels = q.shape
    head_width = channels // num_heads
    return (
        isinstance(batch, int)  # an exported one is no number
        and q.dtype == k.dtype == v.dtype == jnp.bfloat16
        and q.shape == k.shape
        and batch % SUBLANES == 0
        and head_width % SUBLANES == 0
        and LANES % head_width == 0
        and 1 < size[0] == size[1] <= height
        and _strips(height, width, size[0]) is not None
    )


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    num_heads: int,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """(q_i . sum_j k_j v_j^T) / (q_i . sum_j k_j + epsilon) + (kernel * v)_i + bias.

    Per head; `*` is the depthwise convolution with zeros around the map, its kernel
    shared by the heads. Products of bfloat16 with sums in float32; the convolution in
    float32.

    XLA lays maps out with the images in the rows of registers, and so does the kernel:
    rows and columns are addresses to it, so that the taps of the convolution need no
    shuffles, and the tokens of an image are every eighth row. The heads of 128 channels
    are multiplied at once, what belongs to two of them is set to 0. Small maps are read
    once; of larger ones the sums over strips are made first.

    Args:
      q, k, v: bfloat16 [B, H, W, D], heads side by side, q and k not negative.
      kernel: [s, s, K], s odd, K = D / num_heads.  bias: [K].
      num_heads: heads.
      epsilon: added to the denominator.
      interpret: compute it by JAX, on any platform.

    Returns:
      [B, H, W, D] in the dtype of q.
    """
    batch, height, width, channels = q.shape
    strips = _strips(height, width, kernel.shape[0])
    assert strips is not None, "it does not fit"
    layer = Layer(strips, channels, channels // num_heads, epsilon)
    taps = jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), bias[None]])
    taps = jnp.tile(taps.astype(jnp.float32), (1, num_heads))
    maps = [images_inside(t, interpret) for t in (q, k, v)]
    grid = (batch // SUBLANES, -(-channels // LANES), strips.count)
    call = functools.partial(pl.pallas_call, grid=grid, interpret=interpret)
    answer = functools.partial(
        call,
        out_shape=jax.ShapeDtypeStruct(maps[0].shape, q.dtype),
        out_specs=_lines_of(strips),
        name="linear_attention",
    )
    if strips.count == 1:
        o = _at_once(maps, taps, answer, layer)
    else:
        sums = _summed(maps[1], maps[2], call, layer)
        o = _by_strips(maps[0], maps[2], sums, taps, answer, layer)
    return jnp.moveaxis(o, 2, 0)


def _at_once(maps, taps, answer, layer: Layer):
    lines, scratch = _lines_of(layer.strips), _scratch(layer.strips)
    return answer(
        functools.partial(_whole, layer=layer),
        in_specs=[lines, lines, lines, _taps_of(taps)],
        scratch_shapes=[scratch["flat"]] * 4 + [scratch["around"]],
    )(*maps, taps)


def _summed(k, v, call, layer: Layer):
    lines, scratch = _lines_of(layer.strips), _scratch(layer.strips)
    batch, channels = k.shape[2:]
    lead = batch, -(-channels // LANES)
    return call(
        functools.partial(_sums, layer=layer),
        out_shape=[
            jax.ShapeDtypeStruct((*lead, LANES, LANES), k.dtype),
            jax.ShapeDtypeStruct((*lead, 1, LANES), jnp.float32),
        ],
        in_specs=[lines, lines],
        out_specs=_sums_of_images(),
        scratch_shapes=[*[scratch["flat"]] * 2, scratch["products"]],
        name="linear_attention_sums",
    )(k, v)


def _by_strips(q, v, sums, taps, answer, layer: Layer):
    lines, scratch = _lines_of(layer.strips), _scratch(layer.strips)
    around = _surroundings(layer)
    return answer(
        functools.partial(_strip, layer=layer),
        in_specs=[lines, around, *_sums_of_images(), _taps_of(taps)],
        scratch_shapes=[scratch["flat"]] * 3 + [scratch["around"]],
    )(q, v, *sums, taps)


def _scratch(strips: Strips) -> dict[str, Any]:
    shapes = {
        "flat": (strips.tokens * SUBLANES, LANES),
        "around": (strips.surrounded * SUBLANES, LANES),
        "products": (SUBLANES, LANES, LANES),
    }
    return {name: pltpu.VMEM(shape, jnp.float32) for name, shape in shapes.items()}


def _lines_of(strips: Strips) -> pl.BlockSpec:
    shape = (strips.rows, strips.width, SUBLANES, LANES)
    return pl.BlockSpec(shape, lambda b, t, s: (s, 0, b, t))


def _taps_of(taps) -> pl.BlockSpec:
    return pl.BlockSpec((len(taps), LANES), lambda b, t, s: (0, t))


def _sums_of_images() -> list[pl.BlockSpec]:
    shapes = (SUBLANES, None, LANES, LANES), (SUBLANES, None, 1, LANES)
    return [pl.BlockSpec(shape, lambda b, t, s: (b, t, 0, 0)) for shape in shapes]


def _surroundings(layer: Layer) -> pl.BlockSpec:
    """The rows of a strip and those around it."""
    strips, beyond = layer.strips, -layer.channels % LANES
    sides = (strips.given, strips.width, SUBLANES)
    return pl.BlockSpec(
        (*map(pl.Element, sides), pl.Element(LANES, (0, beyond))),
        lambda b, t, s: (strips.first(s), 0, b * SUBLANES, t * LANES),
    )


def _whole(q, k, v, taps, o, *scratch, layer: Layer):
    """A whole map."""
    keys, queries, answers, near, values = scratch
    flatten(k, keys, layer.strips)
    flatten(q, queries, layer.strips)
    surround(v, values, layer.strips)
    same, there = same_head(layer), used(layer, pl.program_id(1))
    images = range(SUBLANES)
    own = [keys[layer.strips.of_image(image), :] for image in images]
    seen = [
        values[layer.strips.of_image(image, 2 * layer.strips.rim), :]
        for image in images
    ]
    pairs = [within_heads(t, same) for t in _products(own, seen)]
    totals = [jnp.sum(t, 0, keepdims=True) for t in own]
    asking = [queries[layer.strips.of_image(image), :] for image in images]
    made = _quotients(asking, pairs, totals, same, there, layer.epsilon)
    for image, each in zip(images, made, strict=True):
        answers[layer.strips.of_image(image), :] = each
    convolve(values, taps, near, layer.strips)
    _add(answers, near, o, layer.strips)


def _sums(k, v, pairs, totals, keys, values, products, *, layer: Layer):
    """The sums over strips of a map, of which the last one writes them."""
    strip = pl.program_id(2)

    @pl.when(strip == 0)
    def _():
        products[...] = jnp.zeros_like(products)
        totals[...] = jnp.zeros_like(totals)

    flatten(k, keys, layer.strips)
    flatten(v, values, layer.strips)

    def some(images):
        own = [keys[layer.strips.of_image(image), :] for image in images]
        seen = [values[layer.strips.of_image(image), :] for image in images]
        found = zip(images, _products(own, seen), own, strict=True)
        for image, product, each in found:
            products[image] += product
            totals[image] += jnp.sum(each, 0, keepdims=True)

    some_by_some(some)

    @pl.when(strip == layer.strips.count - 1)
    def _():
        pairs[...] = within_heads(products[...], same_head(layer))


def _strip(q, v, pairs, totals, taps, o, *scratch, layer: Layer):
    """A strip, after the sums of its map."""
    queries, answers, near, values = scratch
    flatten(q, queries, layer.strips)
    surround(v, values, layer.strips)
    same, there = same_head(layer), used(layer, pl.program_id(1))

    def some(images):
        asking = [queries[layer.strips.of_image(image), :] for image in images]
        summed = [totals[image] for image in images]
        given = [pairs[image] for image in images]
        made = _quotients(asking, given, summed, same, there, layer.epsilon)
        for image, each in zip(images, made, strict=True):
            answers[layer.strips.of_image(image), :] = each

    some_by_some(some)
    convolve(values, taps, near, layer.strips)
    _add(answers, near, o, layer.strips)


def some_by_some(function) -> None:
    """`function` of so many of the eight images as registers and memory allow."""

    def body(part, _):
        function([part * _TOGETHER + i for i in range(_TOGETHER)])
        return 0

    jax.lax.fori_loop(0, SUBLANES // _TOGETHER, body, 0)


def _products(keys: list, values: list) -> list:
    """k^T v [128, 128] of each image."""
    turned = [jnp.transpose(t.astype(jnp.bfloat16)) for t in keys]
    return [dot(k, v) for k, v in zip(turned, values, strict=True)]


def within_heads(product: jax.Array, same: jax.Array) -> jax.Array:
    """0 between two heads."""
    return jnp.where(same, product, 0).astype(jnp.bfloat16)


def _quotients(queries, pairs, totals, same, there, epsilon: float) -> list:
    """q (k^T v) / (q . sum k + epsilon) of each image."""
    if there is not None:  # whatever lies behind the channels, NaN too
        queries = [jnp.where(there, t, 0) for t in queries]
        totals = [jnp.where(there, t, 0) for t in totals]
    ones = jnp.where(same, 1.0, 0.0)
    weighted = [t * total for t, total in zip(queries, totals, strict=True)]
    above = [dot(t, pair) for t, pair in zip(queries, pairs, strict=True)]
    below = [dot(t, ones) + epsilon for t in weighted]
    return [x * inverse(divisor) for x, divisor in zip(above, below, strict=True)]


def inverse(x: jax.Array) -> jax.Array:
    """1 / x by one step of Newton's method from what the chip estimates."""
    guess = _reciprocal(x, approx=True)
    return guess * (2 - x * guess)


def same_head(layer: Layer) -> jax.Array:
    """bool [128, 128]: channels of one head."""
    bits = layer.head_width.bit_length() - 1  # of a power of two

    def head(axis):
        channel = jax.lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis)
        return jax.lax.shift_right_logical(channel, bits)

    return head(0) == head(1)


def used(layer: Layer, tile: Any) -> jax.Array | None:
    """Which of the 128 channels there are; None: always all."""
    if layer.channels % LANES == 0:
        return None
    channel = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return channel < layer.channels - tile * LANES


def _add(answers, near, o, strips: Strips) -> None:
    for row in range(strips.rows):
        line = strips.line(row)
        total = (answers[line, :] + near[line, :]).reshape(-1, SUBLANES, LANES)
        o[row] = total.astype(o.dtype)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b of bfloat16 numbers, in float32."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
