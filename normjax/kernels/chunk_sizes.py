"""What `gated_linear_attention` works through at once, and what it does not compute."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.kernels.attention import LANES, round_up

CHUNK = 64
"""Positions whose weights two heads of 64 channels fill a register's lanes with."""

GONE = -120.0
"""Logarithm of a decay of which float32 leaves nothing."""

MOST = 8
"""Chunks of a step."""

_MEMORY = 14 * 2**20  # a TPU v4 has 16 MiB
_WIDTHS = (32, 64, 128, 256)  # of heads


class Step(NamedTuple):
    """What a step of the grid works through, of one example.

    Attributes:
      heads: heads side by side.  chunks: one after the other.
    """

    heads: int
    chunks: int


def step_of(
    length: int, heads: int, keys: int, values: int, decays: int, most: int = MOST
) -> Step:
    """The largest one that the memory has room for; 0 chunks: there is none.

    Blocks of memory are whole registers, or all heads. They come twice, for the next
    ones come while these are worked through.

    Args:
      decays: a head and position; one takes no room.
      most: chunks.
    """
    chunks = -(-length // CHUNK)
    best = Step(heads, 0)
    for part in range(heads, 0, -1):
        whole = part * keys % LANES == 0 and part * values % LANES == 0
        if heads % part or not (whole or part == heads):
            continue
        wide = round_up(part * keys, LANES), round_up(part * values, LANES)
        position = 2 * 2 * wide[0] + (2 + 4) * wide[1]
        position += 4 * round_up(part * decays, LANES) * (decays > 1)
        state = part * round_up(keys, LANES) * values * 4
        room = (_MEMORY - 5 * state) // (2 * CHUNK * position)
        steps = -(-chunks // max(1, min(room, most)))
        best = max(best, Step(part, -(-chunks // steps) if room > 0 else 0), key=_size)
    return best


def _size(step: Step) -> int:
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
    values, decays = v.shape[-1], 0 if log_decay is None else log_decay.shape[-1]
    known = keys in _WIDTHS and values in _WIDTHS and state.dtype == jnp.float32
    if length < CHUNK or not known:
        return False
    both = (keys, values), (values, keys)  # and of its gradients
    return all(step_of(length, heads, *sizes, decays).chunks > 0 for sizes in both)


def kind_of(log_decay: jax.Array | None) -> str:
    """Of decays: "none", one a "head", or one a channel of "keys"."""
    if log_decay is None:
        return "none"
    return "head" if log_decay.shape[-1] == 1 else "keys"
