"""How the kernels of the selective scan lay out their arrays: in whole registers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.kernels.attention import LANES, LOG2_E, SUBLANES, TOGETHER, round_up

STEPS = 16
"""Positions of a turn: the rows of a register of bfloat16."""

_POSITIONS = 128  # of a block at most, of 16 states
_STATES = range(SUBLANES // 2, 64 + 1)
_TYPES = (jnp.float32, jnp.bfloat16)


def fits(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    *others: jax.Array | None,
) -> bool:
    """Whether the kernels compute it: types, and registers that are not mostly empty.

    64 positions and 4 to 64 states, and 32 channels of a register, of which several
    groups have equal parts.

    Args:
      u, delta, a, b, c: as of `selective_scan`.  others: its skip and state, or None.
    """
    if not all(isinstance(size, int) for size in u.shape):
        return False  # an exported batch size is no number
    given = u, delta, a, b, c, *others
    known = all(t is None or t.dtype in _TYPES for t in given)
    own = u.shape[2] // b.shape[2]
    wide = own * _sharing(own, b.shape[2]) >= LANES // 4
    return known and wide and u.shape[1] >= LANES // 2 and b.shape[3] in _STATES


def _sharing(channels: int, groups: int) -> int:
    """Groups of so many channels each that lie in one register."""
    found = 1
    while 2 * found * channels <= LANES and groups % (2 * found) == 0:
        found *= 2
    return found


class Layout(NamedTuple):
    """Sizes as given, and in whole registers.

    Channels of a group and states are filled up by zeros; positions, too, for a step of
    size 0 leaves the states as they are.

    Attributes:
      batch, length, channels, groups, states: B, L, D, G, N.
      span: positions of a block.  blocks: of positions.
      rows: of registers that hold the states.
      together: channels whose steps alternate.
      sharing: groups that have a register together.
      width: channels of a block.  parts: such widths of a group, or of those.
    """

    batch: int
    length: int
    channels: int
    groups: int
    states: int
    span: int
    blocks: int
    rows: int
    together: int
    sharing: int
    width: int
    parts: int

    @classmethod
    def of(cls, u: jax.Array, b: jax.Array) -> "Layout":
        """For u [B, L, D] and b [B, L, G, N]."""
        batch, length, channels = u.shape
        groups, states = b.shape[2:]
        rows = round_up(states, SUBLANES)
        blocks = -(-length // min(_POSITIONS, _POSITIONS * 16 // rows))
        span = round_up(-(-length // blocks), STEPS)
        sharing = _sharing(channels // groups, groups)
        tiles = -(-channels * sharing // (groups * LANES))
        most = max(1, min(TOGETHER, TOGETHER * 16 // rows))
        parts = -(-tiles // (2 * most))
        width = -(-tiles // parts)
        return cls(
            batch=batch,
            length=length,
            channels=channels,
            groups=groups,
            states=states,
            span=span,
            blocks=-(-length // span),
            rows=rows,
            together=-(-width // -(-width // most)) * LANES,
            sharing=sharing,
            width=width * LANES,
            parts=parts,
        )

    @property
    def before(self) -> tuple[int, ...]:
        """Shape of the states before every block."""
        channels = self.grid[1] * self.width
        return self.batch, self.blocks, self.rows, channels

    @property
    def flat(self) -> tuple[int, int]:
        """Shape of the numbers of a block that are the same for a group's channels."""
        return self.span * self.rows // LANES, LANES

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps: of the batch, of channels, and of positions."""
        return self.batch, self.groups // self.sharing * self.parts, self.blocks

    def positions(self, t: jax.Array) -> jax.Array:
        """[B, L, D], filled up."""
        end = self.blocks * self.span - self.length
        return self._filled(jnp.pad(t, ((0, 0), (0, end), (0, 0))))

    def tables(self, t: jax.Array, rows: int) -> jax.Array:
        """[..., D, N] -> float32 [..., rows, D], filled up."""
        t = jnp.swapaxes(t.astype(jnp.float32), -1, -2)
        end = (0, rows - t.shape[-2]), (0, 0)
        return self._filled(jnp.pad(t, (*[(0, 0)] * (t.ndim - 2), *end)))

    def rates(self, a: jax.Array) -> jax.Array:
        """A as exponents of 2."""
        return self.tables(a, self.rows) * LOG2_E

    def columns(self, t: jax.Array) -> jax.Array:
        """[B, L, G, N] -> float32 [B, G / S, S, blocks, X, LANES], filled up.

        S groups share a register, X registers hold the states of a block.
        """
        end = self.blocks * self.span - self.length
        fill = (0, 0), (0, end), (0, 0), (0, self.rows - self.states)
        t = jnp.swapaxes(jnp.pad(t.astype(jnp.float32), fill), 1, 2)
        return t.reshape(self.batch, -1, self.sharing, self.blocks, *self.flat)

    def from_positions(self, t: jax.Array) -> jax.Array:
        """The inverse of `positions`."""
        return self._given(t[:, : self.length])

    def from_tables(self, t: jax.Array) -> jax.Array:
        """The inverse of `tables`, of the states or less."""
        return jnp.swapaxes(self._given(t), -1, -2)[..., : self.states]

    def from_columns(self, t: jax.Array) -> jax.Array:
        """The inverse of `columns`, of which each part has its own, added up."""
        shape = self.batch, -1, self.parts, self.sharing, self.blocks * self.span
        t = jnp.sum(t.reshape(*shape, self.rows), 2)
        t = t.reshape(self.batch, self.groups, shape[-1], self.rows)
        return jnp.swapaxes(t, 1, 2)[:, : self.length, :, : self.states]

    def _filled(self, t: jax.Array) -> jax.Array:
        """Channels of groups to whole widths, or their share of one."""
        t = t.reshape(*t.shape[:-1], self.groups, -1)
        end = self.parts * self.width // self.sharing - t.shape[-1]
        t = jnp.pad(t, (*[(0, 0)] * (t.ndim - 1), (0, end)))
        return t.reshape(*t.shape[:-2], -1)

    def _given(self, t: jax.Array) -> jax.Array:
        """The inverse of `_filled`."""
        t = t.reshape(*t.shape[:-1], self.groups, -1)
        t = t[..., : self.channels // self.groups]
        return t.reshape(*t.shape[:-2], -1)
