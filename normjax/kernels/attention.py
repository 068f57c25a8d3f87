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
Bias = Callable[[], jax.Array]


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-size // multiple) * multiple


def lane_tiles(width: int) -> list[slice]:
    """The channels of registers, the last one maybe not full."""
    return [slice(i, min(i + LANES, width)) for i in range(0, width, LANES)]


def attend(
    tiles: Sequence[Tile], biases: Sequence[Sequence[Bias]], head_width: int
) -> list[jax.Array]:
    """softmax(q k^T / sqrt(K) + bias) v of the heads in each tile.

    Scores are keys x queries: their largest and their sum go down a register, not
    across its lanes, and one transposition of v and of the result serves all heads.
    The products of bfloat16 queries and keys are scaled when they are exact.

    Args:
      tiles: q [N, 128], k [M, 128] and v [M, 128], whole heads and zeros behind.
      biases: of each head of a tile, () -> [M, N] times sqrt(K), in float32.
      head_width: K.

    Returns:
      [N, 128] of each tile, in float32, of whole heads and zeros behind.
    """
    scores = []
    for (q, k, _), own in zip(tiles, biases, strict=True):
        scores.append(by_head(k, q, len(own), head_width))
    weights = []
    for score, own in zip(scores, biases, strict=True):
        pairs = zip(score, own, strict=True)
        weights.append([exponentials(s + bias(), head_width) for s, bias in pairs])
    found = []
    for (_, _, v), pairs in zip(tiles, weights, strict=True):
        turned = jnp.transpose(v.astype(jnp.float32)).astype(jnp.bfloat16)
        heads = []
        for head, (weight, total) in enumerate(pairs):
            own = turned[head * head_width : (head + 1) * head_width]
            o = product(own, weight.astype(jnp.bfloat16), ((1,), (0,)))
            heads.append(o * (1 / total))
        found.append(jnp.transpose(with_rows(jnp.concatenate(heads, 0), LANES)))
    return found


def by_head(a: jax.Array, b: jax.Array, heads: int, head_width: int) -> list[jax.Array]:
    """a b^T [M, N] of each head, a [M, 128] and b [N, 128]."""
    b, wide = b.astype(jnp.bfloat16), a.astype(jnp.float32)
    channel = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    found = []
    for start in range(0, heads * head_width, head_width):
        own = (channel >= start) & (channel < start + head_width)
        only = jnp.where(own, wide, 0).astype(jnp.bfloat16)
        found.append(product(only, b, ((1,), (1,))))
    return found


def exponentials(score: jax.Array, head_width: int) -> tuple[jax.Array, jax.Array]:
    """exp((score - its largest) / sqrt(K)), [keys, queries], and its sum over keys."""
    factor = head_width**-0.5 * LOG2_E
    weight = jnp.exp2((score - jnp.max(score, 0, keepdims=True)) * factor)
    return weight, jnp.sum(weight, 0, keepdims=True)


def with_rows(x: jax.Array, count: int) -> jax.Array:
    """So many, with zeros behind."""
    return jnp.pad(x, ((0, count - len(x)), (0, 0)))


def product(a: jax.Array, b: jax.Array, contracted: tuple) -> jax.Array:
    """Of bfloat16 numbers, in float32."""
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=jnp.float32
    )
