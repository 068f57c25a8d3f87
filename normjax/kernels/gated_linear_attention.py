"""The linear recurrence with decay, in chunks whose state stays in fast memory."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import SUBLANES, TOGETHER, round_up
from normjax.kernels.chunk_sizes import CHUNK, GONE, MOST, Step, kind_of, step_of
from normjax.kernels.decayed_chunk import (
    CHUNKS,
    DECAYS,
    TILES,
    Group,
    Tile,
    groups_of,
    hand_on,
    sides,
)

_ORDER = "parallel", "parallel", "arbitrary"


def gated_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    *,
    of_values: bool = False,
    reverse: bool = False,
    each: bool = False,
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
      of_values: the decays are [B, L, H, V], S_t = S_{t-1} diag(d_t) + k_t v_t^T.
      reverse: from the last position to the first, as gradients go: with T_L = `state`,
        o_t = (T_t + k_t v_t^T)^T q_t and T_{t-1} = diag(d_t) (T_t + k_t v_t^T).
      each: the state behind every block of positions, and not only the last one.
      interpret: compute it by JAX, on any platform.

    Returns:
      o [B, L, H, V] and the last state, in float32; with `each` [B, blocks, H, K, V].
    """
    batch, length, heads, keys = q.shape
    values, kind = v.shape[-1], "values" if of_values else kind_of(log_decay)
    width = 0 if log_decay is None else log_decay.shape[-1]
    step = step_of(length, heads, keys, values, width, 2 if each else MOST)
    block = step.chunks * CHUNK
    padded = round_up(length, block)
    grid = (batch, heads // step.heads, padded // block)
    groups = groups_of(step.heads, keys, values)
    at = _Places(step, grid[2], reverse)
    given = [_rows(t, padded, jnp.bfloat16) for t in (q, k, v)]
    decays = _decays(log_decay, padded, step, groups, kind)
    turned = jnp.swapaxes(state, -1, -2)[:, None]
    kept = (batch, grid[2] if each else 1, *turned.shape[2:])
    results = (batch, padded, heads * values), kept
    largest = map(max, *map(sides, groups)) if len(groups) > 1 else sides(groups[0])
    o, last = pl.pallas_call(
        functools.partial(_kernel, groups, kind, reverse, each),
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results],
        grid=grid,
        in_specs=at.inputs(keys, values, kind, decays, turned.shape),
        out_specs=[at.positions(values), at.states(turned.shape, each)],
        scratch_shapes=[pltpu.VMEM((len(groups), *largest), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=_ORDER),
        interpret=interpret,
        name="gated_linear_attention",
    )(*given, *decays, turned)
    last = jnp.swapaxes(last if each else last[:, 0], -1, -2)
    return o[:, :length].reshape(batch, length, heads, values), last


def _rows(t: Any, length: int, dtype: Any) -> jax.Array:
    """[B, L, H, X] -> [B, length, H * X], zeros behind the last position."""
    t = t.astype(dtype).reshape(*t.shape[:2], -1)
    return jnp.pad(t, ((0, 0), (0, length - t.shape[1]), (0, 0)))


class _Places(NamedTuple):
    """Blocks of arrays that a step of the grid has.

    Attributes:
      step: how large.  blocks: of positions.  reverse: from the last one on.
    """

    step: Step
    blocks: int
    reverse: bool

    def block(self, i):
        """Of positions, the i-th that is worked through."""
        return self.blocks - 1 - i if self.reverse else i

    def positions(self, width: int) -> pl.BlockSpec:
        """Of arrays by `_rows`, of heads of that width."""
        shape = (1, self.step.chunks * CHUNK, self.step.heads * width)
        return pl.BlockSpec(shape, lambda b, h, i: (b, self.block(i), h))

    def inputs(
        self,
        keys: int,
        values: int,
        kind: str,
        decays: list[jax.Array],
        states: tuple[int, ...],
    ) -> list[pl.BlockSpec]:
        """Of q, k, v, what `_decays` made, and states of that shape."""
        asked, told = self.positions(keys), self.positions(values)
        if kind == "head":
            own = [self.sums(decays[0].shape)]
        else:
            own = {"none": [], "keys": [asked], "values": [told]}[kind]
        return [asked, asked, told, *own, self.states(states, False)]

    def states(self, shape: tuple[int, ...], each: bool) -> pl.BlockSpec:
        """Of [B, blocks or 1, H, V, K]."""
        shape = (1, 1, self.step.heads, *shape[3:])
        return pl.BlockSpec(
            shape, lambda b, h, i: (b, self.block(i) if each else 0, h, 0, 0)
        )

    def sums(self, shape: tuple[int, ...]) -> pl.BlockSpec:
        """Of arrays by `_sums`."""
        shape = (1, 1, self.step.chunks, *shape[3:])
        return pl.BlockSpec(shape, lambda b, h, i: (b, h, self.block(i), 0, 0))


def _decays(
    log_decay: Any, length: int, step: Step, groups: Sequence[Group], kind: str
) -> list[jax.Array]:
    """As the kernel takes them: none, sums of a head's, or those of channels."""
    if log_decay is None:
        return []
    rows = _rows(log_decay, length, jnp.float32)
    return [_sums(rows, step.heads, groups) if kind == "head" else rows]


def _sums(log_decay: jax.Array, part: int, groups: Sequence[Group]) -> jax.Array:
    """Of logarithms since the start of a chunk.

    [B, L, H] -> [B, H / part, L / CHUNK, groups of a part, heads of a group * CHUNK],
    the groups filled up to whole registers.
    """
    batch, _, heads = log_decay.shape
    count = groups[0].count
    gone = jnp.maximum(log_decay, GONE)
    gone = gone.reshape(batch, -1, CHUNK, heads // part, part)
    fill = round_up(len(groups), SUBLANES) * count - part
    gone = jnp.pad(gone, (*[(0, 0)] * 4, (0, fill)))
    gone = gone.reshape(*gone.shape[:4], -1, count)
    # A product: sums over windows take the vector unit ten times as long.
    before = jnp.tri(CHUNK, dtype=gone.dtype)
    exact = jax.lax.Precision.HIGHEST
    total = jnp.einsum("ij,bnjhgp->bhngpi", before, gone, precision=exact)
    return total.reshape(*total.shape[:4], -1)


def _kernel(
    groups: Sequence[Group], kind: str, reverse: bool, each: bool, *refs: Any
) -> None:
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
        numbers = [chunks - 1 - n for n in numbers] if reverse else numbers
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
                    tiles.append(Tile(group, *given, reverse))
            made = iter(zip(tiles, CHUNKS[kind](tiles), strict=True))
            for row in rows:
                for number, _ in part:
                    tile, chunk = next(made)
                    found_here = hand_on(states.at[number], tile, chunk)
                    _put(o, found_here, row, tile.group)
        return 0

    jax.lax.fori_loop(0, chunks // turns, some_chunks, 0)

    @pl.when(each | (pl.program_id(2) == pl.num_programs(2) - 1))
    def _():
        for number, group in enumerate(groups):
            _scatter(states.at[number], last, group)


def _gather(source, to, group: Group) -> None:
    """States of heads [V, K] to their places in that of the group."""
    height, width = sides(group)
    rows = []
    for head in range(group.count):
        own = group.of_keys(head)
        state = source[0, 0, group.heads[0] + head]
        rows.append(jnp.pad(state, ((0, 0), (own.start, width - own.stop))))
    inside = slice(group.of_values(0).start, group.of_values(group.count - 1).stop)
    around = (inside.start, height - inside.stop), (0, 0)
    to[:height, :width] = jnp.pad(jnp.concatenate(rows, 0), around)


def _scatter(source, to, group: Group) -> None:
    """The inverse of `_gather`."""
    for head in range(group.count):
        rows, lanes = group.of_values(head), group.of_keys(head)
        to[0, 0, group.heads[0] + head] = source[rows, lanes]


def _put(o, made: jax.Array, rows, group: Group) -> None:
    inside = slice(group.of_values(0).start, group.of_values(group.count - 1).stop)
    first = group.values.start + inside.start
    o[0, rows, first : first + inside.stop - inside.start] = made[:, inside]
