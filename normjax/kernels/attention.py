"""Softmax attention of what lies in the memory of a core, as kernels do it."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

LANES, SUBLANES = 128, 8
"""Of a register of float32."""

TOGETHER = 4
"""Tiles whose steps alternate, so that units do not wait for each other's results."""

LOG2_E = math.log2(math.e)

HIDDEN = -1e30
"""Bias of a key that a query does not see. Finite, so that no row has a NaN."""

Tile = tuple[jax.Array, jax.Array, jax.Array]


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-size // multiple) * multiple


def lane_tiles(width: int) -> list[slice]:
    """The channels of registers, the last one maybe not full."""
    return [slice(i, min(i + LANES, width)) for i in range(0, width, LANES)]


def attend(
    tiles: Sequence[Tile],
    biases: Sequence[Callable[[int], jax.Array]],
    head_width: int,
) -> list[jax.Array]:
    """softmax(q k^T / sqrt(K) + bias) v of the heads in each tile.

    Scores are keys x queries: their largest and their sum go down a register, not
    across its lanes, and one transposition of v and of the result serves all heads.
    The products of bfloat16 queries and keys are scaled when they are exact.

    Args:
      tiles: q [N, L], k [M, L] and v [M, L] of up to 128 channels L, whole heads.
      biases: of each tile, (its head) -> [M, N] times sqrt(K), in float32.
      head_width: K.

    Returns:
      [N, L] of each tile, in float32.
    """
    scores = iter([s for q, k, _ in tiles for s in by_head(k, q, head_width)])
    weights, totals = [], []
    for (_, k, _), bias in zip(tiles, biases, strict=True):
        for head in range(k.shape[1] // head_width):
            score = next(scores) + bias(head)
            weight, total = exponentials(score, head_width)
            weights.append(weight.astype(jnp.bfloat16))
            totals.append(total)
    found, pairs = [], iter(zip(weights, totals, strict=True))
    for _, _, v in tiles:
        turned = jnp.transpose(v.astype(jnp.float32)).astype(jnp.bfloat16)
        heads = []
        for start in range(0, v.shape[1], head_width):
            weight, total = next(pairs)
            o = product(turned[start : start + head_width], weight, ((1,), (0,)))
            heads.append(o * (1 / total))
        found.append(jnp.transpose(jnp.concatenate(heads, 0)))
    return found


def by_head(a: jax.Array, b: jax.Array, head_width: int) -> list[jax.Array]:
    """a b^T [M, N] of each head, a [M, L] and b [N, L]."""
    b, wide = b.astype(jnp.bfloat16), a.astype(jnp.float32)
    channel = jax.lax.broadcasted_iota(jnp.int32, (1, a.shape[1]), 1)
    found = []
    for start in range(0, a.shape[1], head_width):
        own = (channel >= start) & (channel < start + head_width)
        only = jnp.where(own, wide, 0).astype(jnp.bfloat16)
        found.append(product(only, b, ((1,), (1,))))
    return found


def exponentials(score: jax.Array, head_width: int) -> tuple[jax.Array, jax.Array]:
    """exp((score - its largest) / sqrt(K)) of [keys, queries], and its sum over keys."""
    factor = head_width**-0.5 * LOG2_E
    weight = jnp.exp2((score - jnp.max(score, 0, keepdims=True)) * factor)
    return weight, jnp.sum(weight, 0, keepdims=True)


def product(a: jax.Array, b: jax.Array, contracted: tuple) -> jax.Array:
    """Of bfloat16 numbers, in float32."""
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
