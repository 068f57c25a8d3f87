"""h_t = a_t h_{t-1} + b_t, elementwise, one pass over the memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from normjax.kernels.attention import SUBLANES

_POSITIONS, _CHANNELS = 128, 1024  # of a step
_TOGETHER = 4  # registers of positions whose steps alternate


def fits(a: jax.Array) -> bool:
    """Whether `elementwise_recurrence` computes it: float32, 128 positions at least.

    Args:
      a: [B, L, D].
    """
    known = all(isinstance(size, int) for size in a.shape)  # not so when exported
    return known and a.dtype == jnp.float32 and a.shape[1] >= _POSITIONS


def elementwise_recurrence(
    a: jax.Array,
    b: jax.Array,
    state: jax.Array,
    *,
    reverse: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """h_t = a_t h_{t-1} + b_t, or from the end g_t = b_t + a_{t+1} g_{t+1}.

    Eight positions are a register, in which it takes three steps; from register to
    register and from block to block one row is handed on.

    Args:
      a, b: float32 [B, L, D].
      state: [B, D], h before the first position or a g behind the last one.
      reverse: from the end.
      interpret: compute it by JAX, on any platform.

    Returns:
      [B, L, D].
    """
    batch, length, channels = a.shape
    width, blocks = min(channels, _CHANNELS), pl.cdiv(length, _POSITIONS)

    def position(i):
        return blocks - 1 - i if reverse else i

    block = pl.BlockSpec((1, _POSITIONS, width), lambda n, d, i: (n, position(i), d))
    row = pl.BlockSpec((1, 1, width), lambda n, d, i: (n, 0, d))
    return pl.pallas_call(
        functools.partial(_kernel, length=length, reverse=reverse),
        jax.ShapeDtypeStruct(a.shape, a.dtype),
        grid=(batch, pl.cdiv(channels, width), blocks),
        in_specs=[block, block, row],
        out_specs=block,
        scratch_shapes=[pltpu.VMEM((1, width), a.dtype)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="elementwise_recurrence",
    )(a, b, state[:, None])


def _kernel(a, b, state, h, carried, *, length: int, reverse: bool):
    number, blocks = pl.program_id(2), pl.num_programs(2)
    block = blocks - 1 - number if reverse else number

    @pl.when(number == 0)
    def _():
        carried[...] = state[0]

    turns = _POSITIONS // (SUBLANES * _TOGETHER)

    def some_registers(turn, carry):
        turn = turns - 1 - turn if reverse else turn
        start = pl.multiple_of(turn * SUBLANES * _TOGETHER, SUBLANES * _TOGETHER)
        rows = [pl.ds(start + i * SUBLANES, SUBLANES) for i in range(_TOGETHER)]
        rows = rows[::-1] if reverse else rows
        given = [(a[0, row], b[0, row]) for row in rows]
        if reverse and length % _POSITIONS:  # nothing comes from behind the end
            firsts = [block * _POSITIONS + row.start for row in rows]
            given = [
                _cut(*each, length - i) for each, i in zip(given, firsts, strict=True)
            ]
        kept = [_from_the_end(*each) if reverse else _register(*each) for each in given]
        for row, (_, added), (decay, own) in zip(rows, given, kept, strict=True):
            made = decay * carry + own
            if reverse:
                made, carry = _behind(made, carry, added), made[:1]
            else:
                carry = made[-1:]
            h[0, row] = made
        return carry

    carried[...] = jax.lax.fori_loop(0, turns, some_registers, carried[...])


def _row(like: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, like.shape, 0)


def _cut(a: jax.Array, b: jax.Array, count: Any) -> tuple[jax.Array, jax.Array]:
    """0 from row `count` on."""
    used = _row(a) < count
    return jnp.where(used, a, 0), jnp.where(used, b, 0)


def _register(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(product of a, h from 0) of the first row to each."""
    for distance in (1, 2, 4):
        there = _row(a) >= distance
        before = pltpu.roll(a, distance, 0), pltpu.roll(b, distance, 0)
        b = jnp.where(there, a * before[1] + b, b)
        a = jnp.where(there, a * before[0], a)
    return a, b


def _from_the_end(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(product of a, w from 0) of a row to the last one: w_t = a_t (b_t + w_{t+1})."""
    b = a * b
    for distance in (1, 2, 4):
        there = _row(a) < SUBLANES - distance
        after = [pltpu.roll(t, SUBLANES - distance, 0) for t in (a, b)]
        b = jnp.where(there, a * after[1] + b, b)
        a = jnp.where(there, a * after[0], a)
    return a, b


def _behind(w: jax.Array, carry: jax.Array, added: jax.Array) -> jax.Array:
    """g_t = b_t + w_{t+1}."""
    last = _row(w) == SUBLANES - 1
    return added + jnp.where(last, carry, pltpu.roll(w, SUBLANES - 1, 0))
