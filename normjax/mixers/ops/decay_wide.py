"""The recurrence of `decay` in blocks, in at least float32, exact at any decay.

Inside of a block the sums run over pairs of neighbouring halves, then quarters, and so
on: every decay that is applied is a product of given ones.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum


def blocks(
    chunk: int,
    precision: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`decay.chunked` of arrays in one type.

    Args:
      chunk: positions a block, rounded up to a power of two.
      precision: of the products.
      q, k, v, decay, state: its arguments, log decays [B, L, H, K or 1].
    """
    length = q.shape[1]
    size = min(power_of_two(chunk), power_of_two(length))
    count = -(-length // size)

    def split(t):
        """[B, L, H, X] -> [B, H, n, C, X], heads first as the products want them."""
        pad = [(0, 0)] * t.ndim
        pad[1] = (0, count * size - length)
        t = jnp.pad(t, pad).reshape(t.shape[0], count, size, *t.shape[2:])
        return jnp.moveaxis(t, 3, 1)

    q, k, v = split(q), split(k), split(v)
    factor = None if decay is None else jnp.exp(split(decay))
    product = functools.partial(einsum, precision=precision)
    inside, q, k, total = _inside(product, q, k, v, factor)
    added = product("bhnck,bhncv->nbhkv", k, v)

    def hand_on(state, inputs):
        new, kept = inputs
        return (state if kept is None else kept * state) + new, state

    kept = None if total is None else jnp.moveaxis(jnp.swapaxes(total, -1, -2), 2, 0)
    state, before = jax.lax.scan(hand_on, state, (added, kept))
    o = inside + product("bhnck,nbhkv->bhncv", q, before)
    o = jnp.moveaxis(o, 1, 3).reshape(o.shape[0], count * size, *o.shape[1:2], -1)
    return o[:, :length], state


def _inside(product, q, k, v, factor):
    """What the positions of a block give each other, and the block as a whole.

    Args:
      product: an einsum.
      q, k, v: [..., C, K or V], C a power of two.  factor: [..., C, K or 1] or None.

    Returns:
      o [..., C, V]; q with the decays since the start of the block, k with those until
      its end, and the product of all [..., 1, K or 1].
    """
    lead, size = q.shape[:-2], q.shape[-2]
    o = jnp.sum(q * k, -1, keepdims=True) * v
    total, half = factor, 1
    if factor is not None:
        q = q * factor
    while half < size:
        (q0, q1), (k0, k1), (v0, _), (o0, o1) = (halves(t, half) for t in (q, k, v, o))
        weights = product("...ik,...jk->...ij", q1, k0)
        o = joined(o0, o1 + product("...ij,...jv->...iv", weights, v0))
        if total is not None:
            pairs = total.reshape(*lead, -1, 2, 1, total.shape[-1])
            t0, t1 = pairs[..., 0, :, :], pairs[..., 1, :, :]
            q, k = joined(q0, q1 * t0), joined(k0 * t1, k1)
            total = (t0 * t1).reshape(*lead, -1, total.shape[-1])
        half *= 2
    return o, q, k, total


def halves(t: jax.Array, half: int) -> tuple[jax.Array, jax.Array]:
    """[..., C, X] -> two of [..., C / (2 half), half, X]: each first and second one."""
    t = t.reshape(*t.shape[:-2], -1, 2, half, t.shape[-1])
    return t[..., 0, :, :], t[..., 1, :, :]


def joined(first: jax.Array, second: jax.Array) -> jax.Array:
    """The inverse of `halves`."""
    t = jnp.stack((first, second), axis=-3)
    return t.reshape(*t.shape[:-4], -1, t.shape[-1])


def power_of_two(n: int) -> int:
    """The least one that is not smaller."""
    return 1 << (n - 1).bit_length()
