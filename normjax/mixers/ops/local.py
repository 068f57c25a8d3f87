"""Attention to the last positions, in blocks."""

import jax
import jax.numpy as jnp

from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.masks import documents_of


def within_window(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: int,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of each token to the last `window` ones and itself.

    Blocks of `window` queries see their own block of keys and the one before:
    O(L window D).

    Args:
      q: [B, L, H, K].  k, v: [B, L, G, K], of G heads as in `softmax_attention`.
      mask: bool [B, L]; False is padding.
      positions: int [B, L]; 0 starts a document.

    Returns:
      [B, L, H, K].
    """
    (batch, length, heads, size), reach = q.shape, window
    window = min(window, length)
    blocks = -(-length // window)
    rest = blocks * window - length

    def split(t, before=False):
        """[B, L, ...] -> [B * n, window or 2 window, ...]."""
        ends = [(0, 0)] * t.ndim
        ends[1] = (window if before else 0, rest)
        t = jnp.pad(t, ends)
        t = t.reshape(batch, -1, window, *t.shape[2:])
        t = jnp.concatenate((t[:, :-1], t[:, 1:]), 2) if before else t
        return t.reshape(batch * blocks, *t.shape[2:])

    known = jnp.ones((batch, length), bool) if mask is None else mask
    visible = split(known, True)[:, None, None, :]
    back = jnp.arange(window)[:, None] + window - jnp.arange(2 * window)[None]
    visible &= ((back >= 0) & (back <= reach))[None, None]
    if positions is not None:
        own = jnp.broadcast_to(documents_of(positions), (batch, length))
        own_q, own_k = split(own), split(own, True)
        visible &= (own_q[:, :, None] == own_k[:, None])[:, None]
    o = softmax_attention(split(q), split(k, True), split(v, True), mask=visible)
    return o.reshape(batch, -1, heads, size)[:, :length]


def last_of_window(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int, known: jax.Array
) -> jax.Array:
    """The same for queries [B, N, H, K] of the last N of the keys [B, M, G, K].

    Args:
      known: bool [B, M], which keys are tokens.
    """
    before = k.shape[1] - q.shape[1]
    if q.shape[1] > before:  # blocks cost less than all pairs
        q = jnp.pad(q, ((0, 0), (before, 0), (0, 0), (0, 0)))
        return within_window(q, k, v, window, known)[:, before:]
    order = jnp.arange(k.shape[1])
    back = order[before:, None] - order[None]
    near = (back >= 0) & (back <= window)
    visible = known[:, None, None] & near[None, None]
    # Heads of a group as further queries: keys and values need no copy for each.
    batch, count, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, count, groups, heads // groups, size).swapaxes(2, 3)
    each = q.reshape(batch, -1, groups, size)
    visible = jnp.repeat(visible, heads // groups, 2)
    o = softmax_attention(each, k, v, mask=visible).reshape(q.shape)
    return o.swapaxes(2, 3).reshape(batch, count, heads, size)
