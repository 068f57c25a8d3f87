"""A chunk of the linear recurrence with decay, of heads side by side in registers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import LANES, SUBLANES, round_up
from normjax.kernels.chunk_sizes import CHUNK


class Group(NamedTuple):
    """Heads side by side in registers, worked through as one.

    Attributes:
      heads: the first one and that behind the last one.
      keys, values: lanes of the registers that they lie in.
      width: of a head: (K, V).
    """

    heads: tuple[int, int]
    keys: slice
    values: slice
    width: tuple[int, int]

    @property
    def count(self) -> int:
        """Of heads."""
        return self.heads[1] - self.heads[0]

    def of_keys(self, head: int) -> slice:
        """Lanes of a head of the group within `keys`."""
        start = (self.heads[0] + head) * self.width[0] - self.keys.start
        return slice(start, start + self.width[0])

    def of_values(self, head: int) -> slice:
        """Lanes of a head of the group within `values`."""
        start = (self.heads[0] + head) * self.width[1] - self.values.start
        return slice(start, start + self.width[1])


def sides(group: Group) -> tuple[int, int]:
    """Of a group's state: values x keys."""
    values, keys = group.values, group.keys
    return values.stop - values.start, keys.stop - keys.start


def groups_of(num_heads: int, keys: int, values: int) -> list[Group]:
    """All heads, of K and V channels, as many to a group as fill the lanes once."""
    together = max(1, LANES // max(keys, values))
    found = []
    for first in range(0, num_heads, together):
        heads = first, min(first + together, num_heads)
        of_keys = _registers(heads, keys, num_heads)
        of_values = _registers(heads, values, num_heads)
        found.append(Group(heads, of_keys, of_values, (keys, values)))
    return found


def _registers(heads: tuple[int, int], width: int, num_heads: int) -> slice:
    start, stop = (head * width for head in heads)
    stop = min(round_up(stop, LANES), num_heads * width)
    return slice(start // LANES * LANES, stop)


class Tile(NamedTuple):
    """A chunk of the heads of a group.

    Attributes:
      group: which.
      q, k, v: bfloat16 [CHUNK, lanes].
      decays: of its kind.
      reverse: it goes from the last position to the first.
    """

    group: Group
    q: jax.Array
    k: jax.Array
    v: jax.Array
    decays: Any
    reverse: bool


class Chunk(NamedTuple):
    """What a chunk is to itself, and what it does with the state before it.

    Attributes:
      o: [CHUNK, lanes of values], of its own keys and values.
      q: that the state is asked with.
      factor: of what it answers; None: 1.
      kept: of the state, [1, lanes of keys] or [lanes of values, 1]; None: 1.
      added: to the state.
    """

    o: jax.Array
    q: jax.Array
    factor: jax.Array | None
    kept: jax.Array | None
    added: jax.Array


def _no_decay(tiles: Sequence[Tile]) -> list[Chunk]:
    weights = [jnp.where(_seen(t), _scores(t.q, t), 0) for t in tiles]
    made = []
    for t, weight in zip(tiles, weights, strict=True):
        added = _product(_turned(t.v.astype(jnp.float32)), t.k, _MATRICES)
        made.append(Chunk(_values(weight, t), t.q, None, None, added))
    return made


def _one_decay(tiles: Sequence[Tile]) -> list[Chunk]:
    scores = [_scores(t.q, t) for t in tiles]
    weights = []
    for t, score in zip(tiles, scores, strict=True):
        columns, row = t.decays
        pairs = [slice(i * CHUNK, (i + 1) * CHUNK) for i in range(t.group.count)]
        between = _on_lanes(columns, pairs, row.shape[1]) - row
        decay = jnp.exp(-between if t.reverse else between)
        weights.append(jnp.where(_seen(t), score * decay, 0))
    made = []
    for t, weight in zip(tiles, weights, strict=True):
        columns, _ = t.decays
        heads = range(t.group.count)
        values, keys = map(t.group.of_values, heads), map(t.group.of_keys, heads)
        total = _on_lanes(columns, list(values), t.v.shape[1])
        since, until = jnp.exp(total), jnp.exp(total[-1:] - total)
        asked, told = (until, since) if t.reverse else (since, until)
        left = t.v.astype(jnp.float32) * told
        added = _product(_turned(left), t.k, _MATRICES)
        ends = [column[-1:] for column in columns]
        kept = jnp.exp(_on_lanes(ends, list(keys), t.k.shape[1]))
        made.append(Chunk(_values(weight, t), t.q, asked, kept, added))
    return made


class _Decays(NamedTuple):
    """Of channels, in blocks of a chunk: [CHUNK, lanes].

    Attributes:
      since: products since the start of the block, its own among them.
      until: those until the end, without its own.
      total: of the block.
    """

    since: jax.Array
    until: jax.Array
    total: jax.Array

    def asked_and_told(self, reverse: bool) -> tuple[jax.Array, jax.Array]:
        """Of queries and of keys, which lie in the block before, or behind."""
        return (self.until, self.since) if reverse else (self.since, self.until)

    def doubled(self, half: int) -> "_Decays":
        """Of pairs of blocks."""
        second = _position() & half != 0
        other = _of_other_half(self.total, half, second)
        since = jnp.where(second, self.since * other, self.since)
        until = jnp.where(second, self.until, self.until * other)
        return _Decays(since, until, self.total * other)


def _position() -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (CHUNK, 1), 0)


def _of_keys(tiles: Sequence[Tile]) -> list[Chunk]:
    """A decay a channel of keys: pairs of neighbouring halves, quarters, and so on.

    Of a pair of blocks the queries of the second one see the keys of the first.
    """
    q, k = ([t[1 + i].astype(jnp.float32) for t in tiles] for i in (0, 1))
    decays = [_Decays(t.decays, jnp.ones_like(t.decays), t.decays) for t in tiles]
    weights = [jnp.where(_pairs(t, 0), _scores(t.q, t), 0) for t in tiles]
    half = 1
    while half < CHUNK:
        for i, t in enumerate(tiles):
            asked, told = decays[i].asked_and_told(t.reverse)
            scores = _scores(_narrow(q[i] * asked), t._replace(k=_narrow(k[i] * told)))
            weights[i] = jnp.where(_pairs(t, half), scores, weights[i])
            decays[i] = decays[i].doubled(half)
        half *= 2
    made = []
    for i, t in enumerate(tiles):
        asked, told = decays[i].asked_and_told(t.reverse)
        turned, left = _turned(t.v.astype(jnp.float32)), _narrow(k[i] * told)
        added, kept = _product(turned, left, _MATRICES), decays[i].total[:1]
        o = _values(weights[i], t)
        made.append(Chunk(o, _narrow(q[i] * asked), None, kept, added))
    return made


def _of_values(tiles: Sequence[Tile]) -> list[Chunk]:
    """A decay a channel of values, by the same pairs."""
    v = [t.v.astype(jnp.float32) for t in tiles]
    decays = [_Decays(t.decays, jnp.ones_like(t.decays), t.decays) for t in tiles]
    scores = [_scores(t.q, t) for t in tiles]
    o = [
        _values(jnp.where(_pairs(t, 0), score, 0), t)
        for t, score in zip(tiles, scores, strict=True)
    ]
    half = 1
    while half < CHUNK:
        for i, t in enumerate(tiles):
            asked, told = decays[i].asked_and_told(t.reverse)
            weights = jnp.where(_pairs(t, half), scores[i], 0)
            o[i] += asked * _values(weights, t._replace(v=_narrow(v[i] * told)))
            decays[i] = decays[i].doubled(half)
        half *= 2
    made = []
    for i, t in enumerate(tiles):
        asked, told = decays[i].asked_and_told(t.reverse)
        added = _product(_turned(v[i] * told), t.k, _MATRICES)
        kept = jnp.transpose(decays[i].total[:SUBLANES])[:, :1]
        made.append(Chunk(o[i], t.q, asked, kept, added))
    return made


def _of_other_half(total: jax.Array, half: int, second: jax.Array) -> jax.Array:
    """What is the same in blocks of `half` positions, of the neighbour of each."""
    if half >= SUBLANES:
        blocks = total.reshape(-1, 2, half, total.shape[-1])
        return jnp.stack((blocks[:, 1], blocks[:, 0]), 1).reshape(total.shape)
    registers = total.reshape(-1, SUBLANES, total.shape[-1])
    down = pltpu.roll(registers, half, 1).reshape(total.shape)
    up = pltpu.roll(registers, SUBLANES - half, 1).reshape(total.shape)
    return jnp.where(second, down, up)


def _decays_of_heads(index, rows, sums):
    del rows
    of_chunk = sums[0, 0, index]
    turned = jnp.transpose(of_chunk)

    def of_tile(number: int, group: Group):
        columns = [
            turned[head * CHUNK : (head + 1) * CHUNK, number : number + 1]
            for head in range(group.count)
        ]
        return columns, of_chunk[number : number + 1, : group.count * CHUNK]

    return of_tile


def _decays_of_keys(index, rows, log_decay):
    del index
    return lambda _, group: jnp.exp(log_decay[0, rows, group.keys])


def _decays_of_values(index, rows, log_decay):
    del index
    return lambda _, group: jnp.exp(log_decay[0, rows, group.values])


_ROWS, _MATRICES = ((1,), (1,)), ((1,), (0,))
"""What a product sums over: a b^T and a b."""


def _product(a: jax.Array, b: jax.Array, contracted: tuple) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=jnp.float32
    )


def _scores(q: jax.Array, tile: Tile) -> jax.Array:
    """q_i . k_j, [CHUNK, heads * CHUNK]."""
    lanes = map(tile.group.of_keys, range(tile.group.count))
    k = jnp.concatenate([_only(tile.k, own) for own in lanes], 0)
    return _product(q, k, _ROWS)


def _values(weights: jax.Array, tile: Tile) -> jax.Array:
    """sum_j weights_ij v_j, [CHUNK, lanes of values]."""
    lanes = map(tile.group.of_values, range(tile.group.count))
    v = jnp.concatenate([_only(tile.v, own) for own in lanes], 0)
    return _product(_narrow(weights), v, _MATRICES)


def _of_heads(state: jax.Array, group: Group) -> jax.Array:
    """bfloat16, 0 of values of one head and keys of another."""
    state = state.astype(jnp.bfloat16)
    rows = [group.of_values(head) for head in range(group.count)]
    parts = [_only(state[row], group.of_keys(i)) for i, row in enumerate(rows)]
    around = state[: rows[0].start], state[rows[-1].stop :]
    return jnp.concatenate([x for x in (around[0], *parts, around[1]) if len(x)], 0)


def _only(x: jax.Array, lanes: slice) -> jax.Array:
    """0 in other lanes: of pairs of numbers, for registers hold bfloat16 so."""
    if lanes == slice(0, x.shape[1]):
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, x.shape[1]), 1)
    own = (lane >= lanes.start) & (lane < lanes.stop)
    return pltpu.bitcast(jnp.where(own, pltpu.bitcast(x, jnp.int32), 0), x.dtype)


def _on_lanes(columns: Sequence[jax.Array], lanes: Sequence[slice], width: int):
    """[N, 1] of each head -> [N, width], in the lanes of that head."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    found = jnp.broadcast_to(columns[0], (columns[0].shape[0], width))
    for column, own in zip(columns[1:], lanes[1:], strict=True):
        found = jnp.where(lane >= own.start, column, found)
    return found


def _narrow(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


def _turned(x: jax.Array) -> jax.Array:
    return _narrow(jnp.transpose(x))


def _places(group: Group) -> tuple[jax.Array, jax.Array]:
    """Of queries and keys [CHUNK, heads * CHUNK] in a chunk."""
    shape = CHUNK, group.count * CHUNK
    i, j = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return i, j & (CHUNK - 1)


def _seen(tile: Tile) -> jax.Array:
    """Keys that queries see."""
    i, j = _places(tile.group)
    return j >= i if tile.reverse else j <= i


def _pairs(tile: Tile, half: int) -> jax.Array:
    """Queries in the second and keys in the first half of the same block; 0: equal."""
    i, j = _places(tile.group)
    if not half:
        return i == j
    i, j = (j, i) if tile.reverse else (i, j)
    same = (i ^ j) < 2 * half
    return same & (i & half > 0) & (j & half == 0)


def hand_on(states, tile: Tile, chunk: Chunk) -> jax.Array:
    """o with what the state gives, which goes on behind the chunk."""
    height, width = sides(tile.group)
    state = states[:height, :width]
    asked = _product(chunk.q, _of_heads(state, tile.group), _ROWS)
    if chunk.factor is not None:
        asked = asked * chunk.factor
    if chunk.kept is not None:
        state = chunk.kept * state
    states[:height, :width] = state + chunk.added
    return chunk.o + asked


DECAYS: dict[str, Callable] = {
    "none": lambda *_: lambda *_: None,
    "head": _decays_of_heads,
    "keys": _decays_of_keys,
    "values": _decays_of_values,
}
CHUNKS: dict[str, Callable[[Sequence[Tile]], list[Chunk]]] = {
    "none": _no_decay,
    "head": _one_decay,
    "keys": _of_keys,
    "values": _of_values,
}
TILES = {"none": 8, "head": 8, "keys": 4, "values": 4}
"""Chunks of groups that are worked through together."""
