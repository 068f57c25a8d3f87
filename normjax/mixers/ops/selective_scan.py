"""The selective scan of Mamba: a linear recurrence whose numbers come from the input.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = C_t . h_t + D u_t

for every channel of u with N states of its own (Gu and Dao, 2024). `sequential`,
`associative` and `chunked` compute the same, gradients too, in at least float32. A step
of size 0 leaves the states as they are: that is how padding passes.

Example:
  >>> import jax
  >>> from normjax.mixers import selective_scan
  >>> u, step = jax.random.uniform(jax.random.key(0), (2, 1, 6, 4))  # [B, L, D]
  >>> b, c = jax.random.normal(jax.random.key(1), (2, 1, 6, 2, 3))  # [B, L, G, N]
  >>> a = -jax.random.uniform(jax.random.key(2), (4, 3))  # [D, N]
  >>> y, last = selective_scan.chunked(u, step, a, b, c, chunk=2)
  >>> one_by_one, _ = selective_scan.sequential(u, step, a, b, c)
  >>> y.shape, last.shape, bool(abs(y - one_by_one).max() < 1e-5)
  ((1, 6, 4), (1, 4, 3), True)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.core.tracing import traced_once
from normjax.kernels.choice import kernel_or_function
from normjax.kernels.scan_layout import Layout, fits
from normjax.mixers.ops.decay import diagonal

__all__ = ["associative", "chunked", "sequential"]


class _Steps(NamedTuple):
    """What one or more positions bring."""

    u: jax.Array
    delta: jax.Array
    b: jax.Array
    c: jax.Array


def sequential(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    skip: jax.Array | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The selective scan, position by position.

    Args:
      u: [B, L, D].
      delta: [B, L, D], sizes of the steps, not negative.
      a: A, [D, N], negative.
      b, c: B and C, [B, L, G, N], of G groups of D / G channels.
      skip: D, [D]; None for zeros.
      state: [B, D, N], the h before the first position; None for zeros.

    Returns:
      y [B, L, D] and the last h [B, D, N], in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import selective_scan
      >>> ones = jnp.ones((1, 3, 1))  # [B, L, D]
      >>> states = jnp.ones((1, 3, 1, 1))  # [B, L, G, N]
      >>> y, last = selective_scan.sequential(
      ...     ones, ones, 0 * ones[0, :1], states, states
      ... )
      >>> print(y.ravel(), last.ravel())  # with A = 0 everything is remembered
      [1. 2. 3.] [3.]
    """
    a, steps, first = _prepared(u, delta, a, b, c, state)

    def body(h, at):
        decay, added = _terms(a, at)
        h = decay * h + added
        return h, _read(h, at.c)

    moved = jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0), steps)
    last, y = jax.lax.scan(body, first, moved)
    return _with_skip(jnp.moveaxis(y, 0, 1), u, skip), last


def associative(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    skip: jax.Array | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The same in log2(L) steps side by side: O(B L N D) memory.

    Args:
      u, delta, a, b, c, skip, state: as of `sequential`.

    Returns:
      As `sequential`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import selective_scan
      >>> ones, states = jnp.ones((1, 3, 1)), jnp.ones((1, 3, 1, 1))
      >>> y, _ = selective_scan.associative(ones, ones, 0 * ones[0, :1], states, states)
      >>> print(y.ravel())
      [1. 2. 3.]
    """
    a, steps, first = _prepared(u, delta, a, b, c, state)
    y, last = _side_by_side(a, first, steps)
    return _with_skip(y, u, skip), last


def chunked(
    u: jax.Array,
    delta: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    skip: jax.Array | None = None,
    state: jax.Array | None = None,
    *,
    chunk: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """The same in chunks: side by side inside, states from one chunk to the next.

    The backward pass computes a chunk again, so that the states of one chunk and those
    between chunks are all that is kept. A TPU does it by `kernels.selective_scan`, from
    64 positions and 4 states on, whose states are in fast memory alone.

    Args:
      u, delta, a, b, c, skip, state: as of `sequential`.
      chunk: positions of a chunk.

    Returns:
      As `sequential`.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import selective_scan
      >>> ones, states = jnp.ones((1, 3, 1)), jnp.ones((1, 3, 1, 1))
      >>> given = ones, ones, 0 * ones[0, :1], states, states
      >>> y, _ = selective_scan.chunked(*given, chunk=2)
      >>> print(y.ravel())
      [1. 2. 3.]
    """
    return _chosen(chunk, u, delta, a, b, c, skip, state)


@traced_once("chunk")
def _chosen(chunk, *given):
    function = functools.partial(_in_chunks, chunk)
    if not fits(*given):
        return function(*given)
    # Not elsewhere, where gradients by a pullback would compute forward once more.
    by_kernel = functools.partial(_by_kernel, function)
    return jax.lax.platform_dependent(*given, tpu=by_kernel, default=function)


def _by_kernel(function, u, delta, a, b, c, skip, state):
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    skip = zeros(u.shape[2:]) if skip is None else skip
    state = zeros((u.shape[0], *a.shape)) if state is None else state

    def by_function(u, delta, b, c, state, a, skip):
        return function(u, delta, a, b, c, skip, state)

    def with_zeros(*given):
        return by_function(*given), zeros(Layout.of(given[0], given[2]).before)

    return kernel_or_function(
        _kernel,
        by_function,
        (u, delta, b, c, state),
        a,
        skip,
        pullback=_pullback,
        with_residuals=(functools.partial(_kernel, each=True), with_zeros),
    )


def _kernel(u, delta, b, c, state, a, skip, *, each=False):
    # Here, for Pallas takes longer to import than all mixers.
    from normjax.kernels.selective_scan import selective_scan

    y, last, *kept = selective_scan(u, delta, a, b, c, skip, state, each=each)
    return ((y, last), *kept) if each else (y, last)


def _pullback(primals, cotangents, kept):
    from normjax.kernels.selective_scan_gradient import gradients

    u, delta, b, c, _, a, skip = primals
    found = gradients(u, delta, a, b, c, skip, kept, *cotangents)
    du, ddelta, da, db, dc, dskip, dstate = found
    found = du, ddelta, db, dc, dstate, da, dskip
    return tuple(g.astype(p.dtype) for g, p in zip(found, primals, strict=True))


def _in_chunks(chunk, u, delta, a, b, c, skip, state):
    a, steps, first = _prepared(u, delta, a, b, c, state)
    length = u.shape[1]
    count = -(-length // chunk)
    if count < 2:
        y, last = _side_by_side(a, first, steps)
        return _with_skip(y, u, skip), last

    def split(t):
        """[B, L, ...] -> [count, B, chunk, ...]; steps of size 0 fill the last one."""
        t = jnp.pad(t, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (t.ndim - 2))
        return jnp.moveaxis(t.reshape(t.shape[0], count, chunk, *t.shape[2:]), 1, 0)

    @jax.checkpoint
    def body(h, part):
        y, h = _side_by_side(a, h, part)
        return h, y

    last, y = jax.lax.scan(body, first, jax.tree.map(split, steps))
    y = jnp.moveaxis(y, 0, 1).reshape(u.shape[0], -1, u.shape[2])[:, :length]
    return _with_skip(y, u, skip), last


def _prepared(u, delta, a, b, c, state):
    """A, the numbers of all positions, and the first state; in at least float32."""
    u, delta, a, b, c = (at_least_float32(t) for t in (u, delta, a, b, c))
    if state is None:
        state = jnp.zeros((u.shape[0], *a.shape), u.dtype)
    return a, _Steps(u, delta, b, c), at_least_float32(state)


def _by_channel(t: jax.Array, channels: int) -> jax.Array:
    """[..., G, N] -> [..., D, N]."""
    return jnp.repeat(t, channels // t.shape[-2], -2)


def _terms(a: jax.Array, steps: _Steps) -> tuple[jax.Array, jax.Array]:
    """exp(delta A) and delta B u, both [..., D, N]."""
    delta = steps.delta[..., None]
    lead = (1,) * (delta.ndim - 2)
    decay = jnp.exp(delta * a.reshape(*lead, *a.shape))
    b = _by_channel(steps.b, a.shape[0])
    return decay, (steps.delta * steps.u)[..., None] * b


def _read(h: jax.Array, c: jax.Array) -> jax.Array:
    """C . h: [..., D, N] -> [..., D]."""
    return jnp.sum(h * _by_channel(c, h.shape[-2]), -1)


def _side_by_side(a, state, steps):
    """(y [B, L, D], last state)."""
    decay, added = _terms(a, steps)
    shape, flat = decay.shape, (*decay.shape[:2], -1)
    first = state.reshape(state.shape[0], -1)
    h, last = diagonal(decay.reshape(flat), added.reshape(flat), first)
    return _read(h.reshape(shape), steps.c), last.reshape(state.shape)


def _with_skip(y, u, skip):
    if skip is None:
        return y
    return y + at_least_float32(skip).reshape(1, 1, -1) * at_least_float32(u)
