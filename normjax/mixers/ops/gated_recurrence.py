"""The gated linear recurrence of Griffin."""

import jax
import jax.numpy as jnp

from normjax.core.accumulate import einsum
from normjax.core.moments import at_least_float32
from normjax.mixers.ops import decay

_SHARPNESS = 8.0
_BLOCK = 512  # positions that a CPU works through at a time
_STEEPEST = 1000.0  # bound of the derivative of a square root near 0, as released


def gated_recurrence(precision, weights, x, starts, mask, state):
    """(h, the last h) of the unit of Griffin, elementwise in at least float32.

        r, i = sigmoid(W x + b)   a = exp(-8 r softplus(A))
        h_t = a_t h_{t-1} + sqrt(1 - a_t**2) (i_t x_t)

    Args:
      precision: of the products W x.
      weights: {"recurrence": (W, b) of r, "input": (W, b) of i, "rate": A}, the H
        blocks W [H, D / H, D / H], b [H, D / H], A [D].
      x: [B, L, D].
      starts, mask: bool [B, L] or None: where h_t = i_t x_t, and where h stays.
      state: [B, D], the h before the first position.
    """
    r, i = (_gate(weights[name], x, precision) for name in ("recurrence", "input"))
    rate = jax.nn.softplus(at_least_float32(weights["rate"])).reshape(1, 1, -1)
    log_a = -_SHARPNESS * r * rate
    a, kept = jnp.exp(log_a), _bounded_sqrt(-jnp.expm1(2 * log_a))
    if starts is not None:
        a = jnp.where(starts[..., None], 0, a)
        kept = jnp.where(starts[..., None], 1, kept)
    if mask is not None:
        a = jnp.where(mask[..., None], a, 1)
    return decay.diagonal(a, kept * i * x, state)


def gated_recurrence_in_blocks(precision, weights, x, starts, mask, state):
    """The same in blocks of positions whose intermediate arrays stay in the cache."""
    length = x.shape[1]
    count = length // _BLOCK
    if count < 2 or length % _BLOCK:
        return gated_recurrence(precision, weights, x, starts, mask, state)

    def split(t):
        """[B, L, ...] -> [count, B, _BLOCK, ...]."""
        return jnp.moveaxis(t.reshape(t.shape[0], count, _BLOCK, *t.shape[2:]), 1, 0)

    def block(state, part):
        x, starts, mask = part
        h, last = gated_recurrence(precision, weights, x, starts, mask, state)
        return last, h

    last, h = jax.lax.scan(block, state, jax.tree.map(split, (x, starts, mask)))
    return jnp.moveaxis(h, 0, 1).reshape(x.shape), last


def _gate(weights, x, precision):
    """sigmoid(W x + b), W block-diagonal."""
    kernel, bias = (at_least_float32(w) for w in weights)
    parts = x.reshape(*x.shape[:-1], *bias.shape)
    y = einsum("blhi,hij->blhj", parts, kernel, precision=precision)
    y += bias[None, None]
    return jax.nn.sigmoid(y.reshape(x.shape))


@jax.custom_jvp
def _bounded_sqrt(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


@_bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx / jnp.sqrt(jnp.maximum(4 * x, _STEEPEST**-2))
