"""The linear recurrence with decay, in chunks whose state stays in fast memory."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import LANES, SUBLANES, TOGETHER, round_up
from normjax.kernels.decayed_chunk import (
    CHUNK,
    CHUNKS,
    DECAYS,
    TILES,
    Group,
    Tile,
    groups_of,
    hand_on,
    sides,
)

_MOST = 8  # chunks of a step
_MEMORY = 14 * 2**20  # a TPU v4 has 16 MiB
_WIDTHS = (32, 64, 128, 256)  # of heads
_ORDER = "parallel", "parallel", "arbitrary"
_GONE = -120.0  # exp of it is 0 in float32


class _Step(NamedTuple):
    """What a step of the grid works through, of one example.

    Attributes:
      heads: heads side by side.  chunks: one after the other.
    """

    heads: int
    chunks: int


def _step(length: int, heads: int, keys: int, values: int, by_channel: bool) -> _Step:
    """The largest one that the memory has room for; 0 chunks: there is none.

    Blocks of memory are whole registers, or all heads. They come twice, for the next
    ones come while these are worked through.
    """
    chunks = -(-length // CHUNK)
    best = _Step(heads, 0)
    for part in range(heads, 0, -1):
        whole = part * keys % LANES == 0 and part * values % LANES == 0
        if heads % part or not (whole or part == heads):
            continue
        wide = round_up(part * keys, LANES), round_up(part * values, LANES)
        position = 2 * 2 * wide[0] + (2 + 4) * wide[1] + 4 * wide[0] * by_channel
        state = part * round_up(keys, LANES) * values * 4
        room = (_MEMORY - 5 * state) // (2 * CHUNK * position)
        steps = -(-chunks // max(1, min(room, _MOST)))
        best = max(best, _Step(part, -(-chunks // steps) if room > 0 else 0), key=_size)
    return best


def _size(step: _Step) -> int:
    return step.heads * step.chunks


def fits(
    q: jax.Array, v: jax.Array, log_decay: jax.Array | None, state: jax.Array
) -> bool:
    """Whether `gated_linear_attention` computes it: types, sizes and memory.

    A chunk at least, heads of 32, 64, 128 or 256 channels, which lie in whole registers
    that the memory has room for.

    Args:
      q, v, log_decay, state: as of `gated_linear_attention`.
    """
    if not all(isinstance(size, int) for size in q.shape):
        return False  # an exported batch size is no number
    _, length, heads, keys = q.shape
    values, kind = v.shape[-1], _kind(log_decay)
    return (
        length >= CHUNK
        and state.dtype == jnp.float32
        and keys in _WIDTHS
        and values in _WIDTHS
        and _step(length, heads, keys, values, kind == "channel").chunks > 0
    )


def gated_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """S_t = diag(d_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t (Yang et al., 2024).

    Products of bfloat16 numbers; decays, sums and the state in float32. A decay a head
    is applied as exp(c_i - c_j) with c the sums of logarithms within a chunk, decays a
    channel as products of given ones over halves of a chunk, so that nothing overflows
    or is divided, and a logarithm of -inf starts anew.

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].
      log_decay: at most 0: [B, L, H, K], [B, L, H, 1], or None.
      state: float32 [B, H, K, V] before the first position.
      interpret: compute it by JAX, on any platform.

    Returns:
      o [B, L, H, V] and the last state, in float32.
    """
    batch, length, heads, keys = q.shape
    values, kind = v.shape[-1], _kind(log_decay)
    step = _step(length, heads, keys, values, kind == "channel")
    block = step.chunks * CHUNK
    padded = round_up(length, block)
    groups = groups_of(step.heads, keys, values)
    given = [_rows(t, padded, jnp.bfloat16) for t in (q, k, v)]
    asked, told = (_positions(step, n) for n in (keys, values))
    specs = [asked, asked, told]
    if kind == "channel":
        given.append(_rows(log_decay, padded, jnp.float32))
        specs.append(asked)
    elif kind == "head":
        given.append(_sums(_rows(log_decay, padded, jnp.float32), step.heads, groups))
        specs.append(_sums_of_chunks(step, given[-1]))
    turned = jnp.swapaxes(state, -1, -2)
    whole, result = _whole(step, turned), (batch, padded, heads * values)
    largest = tuple(max(both) for both in zip(*map(sides, groups), strict=True))
    o, last = pl.pallas_call(
        functools.partial(_kernel, groups=groups, kind=kind),
        [jax.ShapeDtypeStruct(s, jnp.float32) for s in (result, turned.shape)],
        grid=(batch, heads // step.heads, padded // block),
        in_specs=[*specs, whole],
        out_specs=[told, whole],
        scratch_shapes=[pltpu.VMEM((len(groups), *largest), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=_ORDER),
        interpret=interpret,
        name="gated_linear_attention",
    )(*given, turned)
    o = o[:, :length].reshape(batch, length, heads, values)
    return o, jnp.swapaxes(last, -1, -2)


def _kind(log_decay: jax.Array | None) -> str:
    if log_decay is None:
        return "none"
    return "head" if log_decay.shape[-1] == 1 else "channel"


def _rows(t: Any, length: int, dtype: Any) -> jax.Array:
    """[B, L, H, X] -> [B, length, H * X], zeros behind the last position."""
    t = t.astype(dtype).reshape(*t.shape[:2], -1)
    return jnp.pad(t, ((0, 0), (0, length - t.shape[1]), (0, 0)))


def _positions(step: _Step, width: int) -> pl.BlockSpec:
    """Of arrays by `_rows`, of heads of that width."""
    shape = (1, step.chunks * CHUNK, step.heads * width)
    return pl.BlockSpec(shape, lambda b, h, i: (b, i, h))


def _whole(step: _Step, states: jax.Array) -> pl.BlockSpec:
    """Of states [B, H, V, K]."""
    shape = (1, step.heads, *states.shape[2:])
    return pl.BlockSpec(shape, lambda b, h, i: (b, h, 0, 0))


def _sums_of_chunks(step: _Step, sums: jax.Array) -> pl.BlockSpec:
    """Of arrays by `_sums`."""
    shape = (1, 1, step.chunks, *sums.shape[3:])
    return pl.BlockSpec(shape, lambda b, h, i: (b, h, i, 0, 0))


def _sums(log_decay: jax.Array, part: int, groups: Sequence[Group]) -> jax.Array:
    """Of logarithms since the start of a chunk.

    [B, L, H] -> [B, H / part, L / CHUNK, groups of a part, heads of a group * CHUNK],
    the groups filled up to whole registers.
    """
    batch, _, heads = log_decay.shape
    count = groups[0].count
    gone = jnp.maximum(log_decay, _GONE)
    gone = gone.reshape(batch, -1, CHUNK, heads // part, part)
    fill = round_up(len(groups), SUBLANES) * count - part
    gone = jnp.pad(gone, (*[(0, 0)] * 4, (0, fill)))
    gone = gone.reshape(*gone.shape[:4], -1, count)
    # A product: sums over windows take the vector unit ten times as long.
    before = jnp.tri(CHUNK, dtype=gone.dtype)
    exact = jax.lax.Precision.HIGHEST
    total = jnp.einsum("ij,bnjhgp->bhngpi", before, gone, precision=exact)
    return total.reshape(*total.shape[:4], -1)


def _kernel(*refs: Any, groups: Sequence[Group], kind: str):
    q, k, v, *decays, first, o, last, states = refs
    chunks, parts = q.shape[1] // CHUNK, -(-len(groups) // TOGETHER)
    per = -(-len(groups) // parts)
    most = max(1, TILES[kind] // per)
    turns = max(n for n in range(1, most + 1) if chunks % n == 0)

    @pl.when(pl.program_id(2) == 0)
    def _():
        for number, group in enumerate(groups):
            _gather(first, states.at[number], group)

    def some_chunks(index, _):
        numbers = [index * turns + i for i in range(turns)]
        rows = [pl.ds(pl.multiple_of(n * CHUNK, CHUNK), CHUNK) for n in numbers]
        places = zip(numbers, rows, strict=True)
        found = [DECAYS[kind](n, r, *decays) for n, r in places]
        for start in range(0, len(groups), per):
            part = list(enumerate(groups))[start : start + per]
            tiles = []
            for row, decay in zip(rows, found, strict=True):
                for number, group in part:
                    keys, values = (0, row, group.keys), (0, row, group.values)
                    given = q[keys], k[keys], v[values], decay(number, group)
                    tiles.append(Tile(group, *given))
            made = iter(zip(tiles, CHUNKS[kind](tiles), strict=True))
            for row in rows:
                for number, _ in part:
                    tile, chunk = next(made)
                    each = hand_on(states.at[number], tile, chunk)
                    _put(o, each, row, tile.group)
        return 0

    jax.lax.fori_loop(0, chunks // turns, some_chunks, 0)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        for number, group in enumerate(groups):
            _scatter(states.at[number], last, group)


def _gather(source, to, group: Group) -> None:
    """States of heads [V, K] to their places in that of the group."""
    height, width = sides(group)
    rows = []
    for head in range(group.count):
        own = group.of_keys(head)
        state = source[0, group.heads[0] + head]
        rows.append(jnp.pad(state, ((0, 0), (own.start, width - own.stop))))
    inside = slice(group.of_values(0).start, group.of_values(group.count - 1).stop)
    around = (inside.start, height - inside.stop), (0, 0)
    to[:height, :width] = jnp.pad(jnp.concatenate(rows, 0), around)


def _scatter(source, to, group: Group) -> None:
    """The inverse of `_gather`."""
    for head in range(group.count):
        rows, lanes = group.of_values(head), group.of_keys(head)
        to[0, group.heads[0] + head] = source[rows, lanes]


def _put(o, made: jax.Array, rows, group: Group) -> None:
    inside = slice(group.of_values(0).start, group.of_values(group.count - 1).stop)
    first = group.values.start + inside.start
    o[0, rows, first : first + inside.stop - inside.start] = made[:, inside]
