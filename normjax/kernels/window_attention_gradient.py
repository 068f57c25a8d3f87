"""Gradients of softmax attention in the windows of maps."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels import window_attention as forward
from normjax.kernels.attention import (
    LANES,
    SUBLANES,
    by_head,
    exponentials,
    lane_tiles,
    product,
    round_up,
)
from normjax.kernels.windows import (
    Geometry,
    apart_of,
    geometry_of,
    of_groups,
    pieces_of,
    put_at,
    read_rows,
    rows_of,
    send,
    tokens_at,
    write_rows,
)

import os
_TOGETHER = int(os.environ.get("TOGETHER", "4"))


def pullback(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    do: jax.Array,
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: int = 0,
    apart: float = 0.0,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    batch, height, width, channels = q.shape
    geometry = geometry_of(height, width, window, shift)
    head = channels // num_heads
    root = head**0.5
    grouped, pull = jax.vjp(
        lambda b: of_groups(b, geometry), bias.astype(jnp.float32)
    )
    biases = root * grouped
    added = root * apart * apart_of(geometry)
    pieces = pieces_of(geometry, channels)
    tables = [pl.BlockSpec(x.shape, lambda *_: (0, 0, 0)) for x in (biases, added)]
    maps = [t for x in (q, k, v, do) for t in [jnp.moveaxis(x, 0, 2)] * len(pieces)]
    rows = (len(lane_tiles(channels)), window[0], geometry.reached * SUBLANES, LANES)
    lines = (3, window[0], width, SUBLANES, channels)
    kernel = functools.partial(_kernel, geometry=geometry, head_width=head)
    made = jax.ShapeDtypeStruct((height, width, batch, channels), q.dtype)
    *found, sums = pl.pallas_call(
        kernel,
        [made] * 3 + [jax.ShapeDtypeStruct(biases.shape, jnp.float32)],
        grid=(batch // SUBLANES, geometry.rows),
        in_specs=pieces * 4 + tables,
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 3 + tables[:1],
        scratch_shapes=[
            *[pltpu.VMEM(rows, jnp.uint32)] * 2,
            pltpu.VMEM(lines, q.dtype),
            pltpu.SemaphoreType.DMA((3, 2)),
        ],
        interpret=interpret,
        name="window_attention_gradient",
    )(*maps, biases, added)
    return *(jnp.moveaxis(t, 2, 0) for t in found), *pull(sums)


def _kernel(*refs: Any, geometry: Geometry, head_width: int):
    pieces = 2 if geometry.shift else 1
    maps = [refs[n * pieces : (n + 1) * pieces] for n in range(4)]
    biases, apart, *results, sums, asked, given, lines, arrived = refs[4 * pieces :]
    write_rows(maps[:2], asked, _paired, geometry)
    write_rows(maps[2:], given, _paired, geometry)

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        sums[...] = jnp.zeros_like(sums)

    last = (pl.program_id(1) == geometry.rows - 1).astype(jnp.int32)
    tiles = list(enumerate(lane_tiles(lines.shape[-1])))
    jobs = list(itertools.product(tiles, range(geometry.groups)))

    def one_image(image, _):
        for start in range(0, len(jobs), _TOGETHER):
            part = jobs[start : start + _TOGETHER]
            words, seen, firsts = [], [], []
            for (tile, lanes), group in part:
                rows = rows_of(image, group, geometry.loaded, geometry)
                width = lanes.stop - lanes.start
                words.append(
                    [tokens_at(x.at[tile], rows, width) for x in (asked, given)]
                )
                behind = int(group == geometry.groups - 1)
                first = lanes.start // head_width
                more = apart[2 * last + behind] if geometry.shift else None
                seen.append(functools.partial(forward._bias, biases, more, first))
                firsts.append(first)
            made, slopes = _of_tiles(words, seen, head_width)
            for first, each in zip(firsts, slopes, strict=True):
                for head, slope in enumerate(each):
                    sums[first + head] += slope
            for ((tile, _), group), each in zip(part, made, strict=True):
                rows = rows_of(image, group, geometry.columns, geometry)
                for to, found in zip((asked, given), each, strict=True):
                    put_at(to.at[tile], found, rows, geometry)  # nobody asks it again
        return 0

    jax.lax.fori_loop(0, SUBLANES, one_image, 0)

    def fill():
        for number, (source, convert) in enumerate(
            [(asked, _first), (asked, _second), (given, _first)]
        ):
            read_rows(source, lines.at[number], convert, geometry)

    send(results, lines, arrived, fill, geometry)


def _of_tiles(tiles: list, biases: list, head_width: int) -> tuple[list, list]:
    """The gradients of q and k, and of v, as words, and of the biases of each head."""
    halves = [(*_both(qk), *_both(vo)) for qk, vo in tiles]
    scores = iter([s for q, k, _, _ in halves for s in by_head(k, q, head_width)])
    slopes = iter([s for _, _, v, do in halves for s in by_head(v, do, head_width)])
    weights, by_score = [], []
    for (q, *_), bias in zip(halves, biases, strict=True):
        made = []
        for head in range(q.shape[1] // head_width):
            weight, total = exponentials(next(scores) + bias(head), head_width)
            weight = weight * (1 / total)
            slope = next(slopes)
            mean = jnp.sum(weight * slope, 0, keepdims=True)
            made.append(weight * (slope - mean))
            weights.append(weight.astype(jnp.bfloat16))
        by_score.append(made)
    found = []
    rest = iter(weights)
    for (qk, vo), made in zip(tiles, by_score, strict=True):
        q, k = (t.astype(jnp.bfloat16) for t in _both(jnp.transpose(qk)))
        do = _second(jnp.transpose(vo)).astype(jnp.bfloat16)
        dq, dk, dv = [], [], []
        for head, slope in enumerate(made):
            own = slice(head * head_width, (head + 1) * head_width)
            slope = slope.astype(jnp.bfloat16)
            dq.append(product(k[own], slope, ((1,), (0,))))
            dk.append(product(q[own], slope, ((1,), (1,))))
            dv.append(product(do[own], next(rest), ((1,), (1,))))
        dq, dk, dv = (jnp.concatenate(t, 0) for t in (dq, dk, dv))
        scale = head_width**-0.5
        first = _paired(dq * scale, dk * scale)
        found.append((jnp.transpose(first), jnp.transpose(_paired(dv, dv))))
    return found, by_score


def _paired(a: jax.Array, b: jax.Array) -> jax.Array:
    """bfloat16 numbers in the halves of words."""
    a, b = (_bits(t.astype(jnp.bfloat16).astype(jnp.float32)) for t in (a, b))
    return a | (b >> 16)


def _both(words: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _first(words), _second(words)


def _first(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFF0000), jnp.float32)


def _second(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words << 16, jnp.float32)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
