"""Softmax attention in the windows of maps, which are not cut for it."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import (
    LANES,
    SUBLANES,
    TOGETHER,
    attend,
    lane_tiles,
    round_up,
    with_rows,
)
from normjax.kernels.windows import (
    Geometry,
    biases_at,
    geometry_of,
    last_row,
    pieces_of,
    put_at,
    read_rows,
    send,
    tables_of,
    tokens_at,
    write_rows,
)

_MEMORY = 15 * 2**20  # a TPU v4 has 16 MiB
_LARGEST = 256  # tokens of a group


def fits(
    q: jax.Array | jax.ShapeDtypeStruct,
    num_heads: int,
    window: tuple[int, int],
    shift: int,
) -> bool:
    """Whether `window_attention` computes it: types, sizes and memory.

    Args:
      q: [B, H, W, D], as k and v are.
    """
    batch, height, width, channels = q.shape
    head, geometry = channels // num_heads, geometry_of(height, width, window, shift)
    return (
        isinstance(batch, int)  # an exported one is no number
        and q.dtype == jnp.bfloat16
        and batch % SUBLANES == 0
        and head % SUBLANES == 0
        and LANES % head == 0
        and geometry.tokens <= _LARGEST
        and geometry.reached <= 2 * width  # its beginning is there once more
        and _memory(geometry, channels, num_heads) <= _MEMORY
    )


def _memory(geometry: Geometry, channels: int, num_heads: int) -> int:
    """Bytes: blocks twice, for the next ones come while these are worked through."""
    position = geometry.window[0] * SUBLANES * round_up(channels, LANES)
    blocks = 4 * geometry.width * position * 2
    moved = 3 * geometry.reached * position * 4
    pairs = geometry.tokens * round_up(geometry.tokens, LANES)
    return 2 * blocks + moved + (num_heads + 4) * pairs * 4


def window_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: int = 0,
    apart: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias) v in every window of a map.

    Windows begin `shift` rows and columns behind the corner; those that reach over an
    edge go on at the opposite one (Liu et al., 2021), and `apart` is added to pairs
    that only meet there. Softmax and sums in float32.

    XLA lays maps out with the images in the rows of registers, for sides of 28 or 14 do
    not fill them. So does the kernel, to which rows and columns are addresses: nothing
    is rolled or cut. Eight images and one row of windows are a step; the tokens of an
    image are every eighth row.

    Args:
      q, k, v: bfloat16 [B, H, W, D], heads side by side.
      bias: [heads, h * w, h * w] of queries and keys of a window.
      num_heads: heads of K = D / num_heads channels.
      window: (h, w), which cover the map.  shift: less than both.
      interpret: compute it by JAX, on any platform.

    Returns:
      [B, H, W, D] in the dtype of q.
    """
    batch, height, width, channels = q.shape
    geometry = geometry_of(height, width, window, shift)
    head = channels // num_heads
    given = tables_of(bias.astype(jnp.float32), apart, head, geometry)
    pieces = pieces_of(geometry, channels)
    tables = [pl.BlockSpec(x.shape, lambda *_: (0, 0, 0)) for x in given]
    maps = [t for x in (q, k, v) for t in [jnp.moveaxis(x, 0, 2)] * len(pieces)]
    rows = (len(lane_tiles(channels)), window[0], geometry.reached * SUBLANES, LANES)
    lines = (1, window[0], width, SUBLANES, channels)
    kernel = functools.partial(_kernel, geometry=geometry, head_width=head)
    o = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((height, width, batch, channels), q.dtype),
        grid=(batch // SUBLANES, geometry.rows),
        in_specs=pieces * 3 + tables,
        out_specs=pl.BlockSpec(memory_space=pl.ANY),
        scratch_shapes=[
            *[pltpu.VMEM(rows, jnp.float32)] * 3,
            pltpu.VMEM(lines, q.dtype),
            pltpu.SemaphoreType.DMA((1, 2)),
        ],
        interpret=interpret,
        name="window_attention",
    )(*maps, *given)
    return jnp.moveaxis(o, 2, 0)


def _kernel(*refs: Any, geometry: Geometry, head_width: int):
    pieces = 2 if geometry.shift else 1
    biases, apart, result, *inputs, lines, arrived = refs[3 * pieces :]
    for number, to in enumerate(inputs):
        source = refs[number * pieces : (number + 1) * pieces]
        write_rows([source], to, _wide, geometry)
    last, channels = last_row(geometry), lines.shape[-1]
    tiles = list(enumerate(lane_tiles(channels)))
    jobs = list(itertools.product(tiles, range(geometry.groups)))

    def one_image(image, _):
        for start in range(0, len(jobs), TOGETHER):
            part = jobs[start : start + TOGETHER]
            given, seen = [], []
            for (tile, lanes), group in part:
                own = [tokens_at(x.at[tile], image, group, geometry) for x in inputs]
                given.append((with_rows(own[0], geometry.queries), *own[1:]))
                heads = range(lanes.start // head_width, lanes.stop // head_width)
                seen.append(biases_at(biases, apart, heads, group, last, geometry))
            made = attend(given, seen, head_width)
            for ((tile, _), group), each in zip(part, made, strict=True):
                # in the place of queries, which nobody asks for again
                put_at(inputs[0].at[tile], each, image, group, geometry)
        return 0

    jax.lax.fori_loop(0, SUBLANES, one_image, 0)

    def fill():
        read_rows(inputs[0], lines.at[0], _wide, geometry)

    send([result], lines, arrived, fill, geometry)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
