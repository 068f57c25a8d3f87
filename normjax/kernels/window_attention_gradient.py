"""Gradients of softmax attention in the windows of maps."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels import window_attention as forward
from normjax.kernels.attention import (
    LANES,
    SUBLANES,
    Bias,
    by_head,
    exponentials,
    lane_tiles,
    product,
    round_up,
    with_rows,
)
from normjax.kernels.windows import (
    Geometry,
    biases_at,
    geometry_of,
    last_row,
    of_groups,
    pieces_of,
    put_at,
    read_rows,
    send,
    tables_of,
    tokens_at,
    write_rows,
)

_MEMORY = 31 * 2**19  # a TPU v4 has 16 MiB
_IMAGES = 2  # that are worked through at once
_BEHIND = 0, 3, 5  # tiles by which a step follows the first


def fits(
    q: jax.Array | jax.ShapeDtypeStruct,
    num_heads: int,
    window: tuple[int, int],
    shift: int,
) -> bool:
    """Whether `pullback` computes it: what the kernel takes, if it is small enough."""
    _, height, width, channels = q.shape
    geometry = geometry_of(height, width, window, shift)
    small = _memory(geometry, channels, num_heads) <= _MEMORY
    return small and forward.fits(q, num_heads, window, shift)


def _memory(geometry: Geometry, channels: int, num_heads: int) -> int:
    """Bytes: blocks twice, for the next ones come while these are worked through.

    And scores of the tiles that are begun, which are more than registers keep.
    """
    position = geometry.window[0] * SUBLANES * round_up(channels, LANES)
    map_ = geometry.width * position * 2
    words = geometry.reached * position * 4
    pairs = geometry.tokens * geometry.queries * 4
    begun = 2 * _BEHIND[-1] * (LANES * num_heads // channels) * pairs
    return (2 * 4 + 3) * map_ + 2 * words + (2 * num_heads + 4) * pairs + begun


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
    """Gradients of `window_attention` by q, k, v and the bias.

    With P = softmax(q k^T / sqrt(K) + bias) of a window and a head, and dP = do v^T,

        dS = P (dP - sum of P dP over keys)      dbias = sum of dS over windows
        dq = dS k / sqrt(K)      dk = dS^T q / sqrt(K)      dv = P^T do

    P is computed again. Products of bfloat16 with sums in float32; all else in float32.
    Two maps share the words that the kernel keeps: one transposition serves both.

    Args:
      q, k, v, do: bfloat16 [B, H, W, D].  bias: [heads, h * w, h * w].
      num_heads, window, shift, apart, interpret: see `window_attention`.

    Returns:
      dq, dk, dv in bfloat16; that of the bias in float32.
    """
    batch, height, width, channels = q.shape
    geometry = geometry_of(height, width, window, shift)
    head_width = channels // num_heads
    bias = bias.astype(jnp.float32)
    given = tables_of(bias, apart, head_width, geometry)
    pieces = pieces_of(geometry, channels)
    once = pl.Buffered(buffer_count=1)  # they are the same in all steps
    tables = [
        pl.BlockSpec(x.shape, lambda *_: (0, 0, 0), pipeline_mode=once) for x in given
    ]
    maps = [t for x in (q, k, v, do) for t in [jnp.moveaxis(x, 0, 2)] * len(pieces)]
    words = (len(lane_tiles(channels)), window[0], geometry.reached * SUBLANES, LANES)
    made = jax.ShapeDtypeStruct((height, width, batch, channels), q.dtype)
    *found, sums = pl.pallas_call(
        functools.partial(_kernel, geometry=geometry, head_width=head_width),
        out_shape=[made] * 3 + [jax.ShapeDtypeStruct(given[0].shape, jnp.float32)],
        grid=(batch // SUBLANES, geometry.rows),
        in_specs=pieces * 4 + tables,
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 3 + tables[:1],
        scratch_shapes=[
            *[pltpu.VMEM(words, jnp.uint32)] * 2,
            pltpu.VMEM((3, window[0], width, SUBLANES, channels), q.dtype),
            pltpu.SemaphoreType.DMA((3, 2)),
        ],
        interpret=interpret,
        name="window_attention_gradient",
    )(*maps, *given)
    by_bias = jax.vjp(functools.partial(of_groups, geometry=geometry), bias)[1]
    return *(jnp.moveaxis(t, 2, 0) for t in found), *by_bias(sums)


def _kernel(*refs: Any, geometry: Geometry, head_width: int):
    pieces = 2 if geometry.shift else 1
    maps = [refs[n * pieces : (n + 1) * pieces] for n in range(4)]
    biases, apart, *results, sums, asked, given, lines, arrived = refs[4 * pieces :]
    write_rows(maps[:2], asked, _words, geometry)  # q and k
    write_rows(maps[2:], given, _words, geometry)  # v and do

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        sums[...] = jnp.zeros_like(sums)

    last = last_row(geometry)
    tiles = list(enumerate(lane_tiles(lines.shape[-1])))
    jobs = list(itertools.product(range(_IMAGES), tiles, range(geometry.groups)))

    def some_images(part, _):
        scores, slopes = [], []

        def words(job: int) -> tuple[jax.Array, jax.Array]:
            image, (tile, _), group = jobs[job]
            place = part * _IMAGES + image, group, geometry
            return tokens_at(asked.at[tile], *place), tokens_at(given.at[tile], *place)

        def score(job: int) -> None:
            _, (_, lanes), _ = jobs[job]
            count = (lanes.stop - lanes.start) // head_width
            scores.append(_scores(*words(job), count, head_width))

        def slope(job: int) -> None:
            _, (_, lanes), group = jobs[job]
            heads = range(lanes.start // head_width, lanes.stop // head_width)
            added = biases_at(biases, apart, heads, group, last, geometry)
            pairs, by_bias = _slopes(scores[job], added, head_width)
            slopes.append(pairs)
            for head, each in zip(heads, by_bias, strict=True):
                sums[head] += each

        def multiply(job: int) -> None:
            image, (tile, _), group = jobs[job]
            found = _products(*words(job), slopes[job], head_width)
            for to, each in zip((asked, given), found, strict=True):
                # in the place of what nobody asks for again
                put_at(to.at[tile], each, part * _IMAGES + image, group, geometry)

        _one_behind_the_other((score, slope, multiply), len(jobs))
        return 0

    jax.lax.fori_loop(0, SUBLANES // _IMAGES, some_images, 0)

    def fill():
        read_rows(asked, lines.at[0], _first, geometry)
        read_rows(asked, lines.at[1], _second, geometry)
        read_rows(given, lines.at[2], _first, geometry)

    send(results, lines, arrived, fill, geometry)


def _one_behind_the_other(steps: tuple[Callable[[int], None], ...], count: int) -> None:
    """The steps of all tiles in an order in which the units of a core work at once.

    The first keeps the matrix unit busy, the second the vector unit.
    """
    for number in range(count + _BEHIND[-1]):
        for step, behind in zip(steps, _BEHIND, strict=True):
            if 0 <= number - behind < count:
                step(number - behind)


def _scores(qk, vdo, heads: int, head_width: int) -> list[tuple[jax.Array, jax.Array]]:
    """k q^T and v do^T [keys, queries] of each head."""
    size = round_up(len(qk), LANES)
    by_key = by_head(_second(qk), with_rows(_first(qk), size), heads, head_width)
    by_value = by_head(_first(vdo), with_rows(_second(vdo), size), heads, head_width)
    return list(zip(by_key, by_value, strict=True))


def _slopes(
    scores: list, biases: list[Bias], head_width: int
) -> tuple[list, list[jax.Array]]:
    """P and dS [keys, queries] of each head as operands, and dS."""
    pairs, slopes = [], []
    for (score, slope), bias in zip(scores, biases, strict=True):
        weight, total = exponentials(score + bias(), head_width)
        weight = weight * (1 / total)
        mean = jnp.sum(weight * slope, 0, keepdims=True)
        slopes.append(weight * (slope - mean))
        size = round_up(len(score), LANES)
        both = (with_rows(x, size) for x in (weight, slopes[-1]))
        pairs.append(tuple(x.astype(jnp.bfloat16) for x in both))
    return pairs, slopes


def _products(qk, vdo, slopes: list, head_width: int) -> tuple[jax.Array, jax.Array]:
    """The words of dq and dk, and of dv."""
    size = round_up(len(qk), LANES)
    qk, vdo = (jnp.transpose(with_rows(x, size)) for x in (qk, vdo))
    q, k, do = (x.astype(jnp.bfloat16) for x in (_first(qk), _second(qk), _second(vdo)))
    heads = []
    for head, (weight, slope) in enumerate(slopes):
        own = slice(head * head_width, (head + 1) * head_width)
        dq = product(k[own], slope, ((1,), (0,)))
        dk = product(q[own], slope, ((1,), (1,)))
        heads.append((dq, dk, product(do[own], weight, ((1,), (1,)))))
    dq, dk, dv = (
        with_rows(jnp.concatenate(t, 0), LANES) for t in zip(*heads, strict=True)
    )
    scale = head_width**-0.5
    first, second = _words(dq * scale, dk * scale), _words(dv, dv)
    return jnp.transpose(first), jnp.transpose(second)


def _words(first: jax.Array, second: jax.Array) -> jax.Array:
    """Of two bfloat16 numbers each."""
    wide = (t.astype(jnp.bfloat16).astype(jnp.float32) for t in (first, second))
    high, low = (jax.lax.bitcast_convert_type(t, jnp.uint32) for t in wide)
    return high | (low >> 16)


def _first(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFF0000), jnp.float32)


def _second(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words << 16, jnp.float32)
