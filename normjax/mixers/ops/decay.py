"""The linear recurrence with decay that gated and decayed linear attention share.

    S_t = diag(d_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

with one state S [K, V] per head and decays d in [0, 1], given as logarithms. Three
ways to compute it agree: `parallel` (one block of all positions), `chunked` (blocks
that hand on their state; O(L (C + V) K) for blocks of C) and `recurrent` (position by
position, with `step` for one).

Gated linear attention (Yang et al., 2024) has one decay per key channel and position,
Mamba-2 one per head and position, RetNet (Sun et al., 2023) and Lightning Attention
(Qin et al., 2024) one per head, linear attention (Katharopoulos et al., 2020) none.

Example:
  >>> import jax.numpy as jnp
  >>> from normjax.mixers import decay
  >>> x = jnp.ones((1, 4, 1, 1))  # [B, L, H, K]
  >>> print(decay.parallel(x, x, x)[0].ravel())
  [1. 2. 3. 4.]
"""

import functools

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT, einsum, precision_of
from normjax.core.moments import align_mask
from normjax.core.tracing import traced_once
from normjax.mixers.ops import decay_narrow, decay_wide, elementwise

__all__ = [
    "causal_linear_attention",
    "chunked",
    "diagonal",
    "parallel",
    "recurrent",
    "step",
    "within_documents",
]

CHUNK = 64
_CACHED = 1 << 16  # elements of all states


def step(
    state: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One position: (o, new state).

    Args:
      state: [B, H, K, V] in at least float32.
      q, k: [B, H, K].  v: [B, H, V].
      log_decay: [B, H, K] or [B, H, 1], at most 0; None for no decay.

    Returns:
      o [B, H, V] and the state, in the dtype of the state.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> state = jnp.full((1, 1, 1, 1), 8.0)  # [B, H, K, V]
      >>> q = k = v = jnp.ones((1, 1, 1))
      >>> half = jnp.log(jnp.full((1, 1, 1), 0.5))
      >>> o, state = decay.step(state, q, k, v, half)
      >>> print(o.ravel(), state.ravel())  # 8 / 2 + 1
      [5.] [5.]
    """
    q, k, v = (t.astype(state.dtype) for t in (q, k, v))
    if log_decay is not None:
        state = jnp.exp(log_decay.astype(state.dtype))[..., None] * state
    state = state + k[..., None] * v[..., None, :]
    return einsum("bhk,bhkv->bhv", q, state, precision=EXACT), state


def recurrent(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Position by position.

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].
      log_decay: at most 0: [B, L, H, K], [B, L, H, 1] or [H]; None for no decay.
      state: [B, H, K, V] before the first position; None for zeros.

    Returns:
      o [B, L, H, V] and the last state, in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> q = k = v = jnp.ones((1, 4, 1, 1))  # [B, L, H, K]
      >>> o, state = decay.recurrent(q, k, v)  # no decay: a running sum
      >>> print(o.ravel(), state.ravel())
      [1. 2. 3. 4.] [4.]
    """
    return _steps(*_prepared(q, k, v, log_decay, state))


def _steps(q, k, v, decay, state):
    def body(state, inputs):
        o, state = step(state, *inputs)
        return state, o

    moved = jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0), (q, k, v, decay))
    state, o = jax.lax.scan(body, state, moved)
    return jnp.moveaxis(o, 0, 1), state


# A CPU that holds the states in its cache takes a third of the time step by step, but
# ten times as long for the gradient.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _steps_in_inference(chunk, precision, *operands):
    return _steps(*operands)


@_steps_in_inference.defjvp
def _steps_jvp(chunk, precision, primals, tangents):
    return jax.jvp(
        functools.partial(decay_wide.blocks, chunk, precision), primals, tangents
    )


def parallel(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """All positions in one block, O(L**2 (K + V)).

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].
      log_decay: at most 0: [B, L, H, K], [B, L, H, 1] or [H]; None for no decay.
      state: [B, H, K, V] before the first position; None for zeros.

    Returns:
      o [B, L, H, V] and the last state, in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> q = k = v = jnp.ones((1, 4, 1, 1))  # [B, L, H, K]
      >>> o, state = decay.parallel(q, k, v, state=jnp.full((1, 1, 1, 1), 10.0))
      >>> print(o.ravel(), state.ravel())
      [11. 12. 13. 14.] [14.]
    """
    return chunked(q, k, v, log_decay, state, chunk=q.shape[1])


def chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    state: jax.Array | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Blocks of `chunk` positions side by side, states from block to block.

    Inside a block the sums run over pairs of neighbouring halves, then quarters, and so
    on: every decay that is applied is a product of given ones, so that nothing
    overflows or is divided, however strong the decay, and a decay of exactly 0 (a
    logarithm of -inf) starts anew. Everything in at least float32, but for products of
    what was bfloat16: a TPU does that by `kernels.gated_linear_attention`. Where
    nothing is differentiated and the states fit the cache of a CPU, it goes as
    `recurrent`.

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].
      log_decay: at most 0: [B, L, H, K] per key channel, [B, L, H, 1] per head, [H] the
        same at all positions; None for no decay.
      state: [B, H, K, V] before the first position; None for zeros.
      chunk: positions a block, rounded up to a power of two.

    Returns:
      o [B, L, H, V] and the state after the last position.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> q = k = v = jnp.ones((1, 4, 1, 1))  # [B, L, H, K]
      >>> half = jnp.log(jnp.array([0.5]))  # one decay a head
      >>> o, state = decay.chunked(q, k, v, half, chunk=2)
      >>> print(o.ravel().round(3))  # 1, 1/2 + 1, ...
      [1. 1.5 1.75 1.875]
    """
    return _chunked(q, k, v, log_decay, state, chunk)


@traced_once("chunk")
def _chunked(q, k, v, log_decay, state, chunk):
    precision = precision_of(q, k, v)
    operands = _prepared(q, k, v, log_decay, state)
    size = min(decay_wide.power_of_two(chunk), decay_wide.power_of_two(q.shape[1]))

    def on_cpu(*operands) -> tuple[jax.Array, jax.Array]:
        # An exported batch size is no number.
        known = isinstance(operands[-1].shape[0], int)
        steps = known and operands[-1].size <= _CACHED
        return (_steps_in_inference if steps else decay_wide.blocks)(
            chunk, precision, *operands
        )

    elsewhere = {"default": functools.partial(decay_wide.blocks, chunk, precision)}
    if precision is not EXACT:
        elsewhere = {
            "default": functools.partial(decay_narrow.blocks, chunk=size),
            "tpu": functools.partial(decay_narrow.on_a_tpu, size),
        }
    return jax.lax.platform_dependent(*operands, cpu=on_cpu, **elsewhere)


def causal_linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    epsilon: float = 1e-6,
) -> jax.Array:
    """o_i = (q_i . sum_{j <= i} k_j v_j^T) / (q_i . sum_{j <= i} k_j + epsilon).

    The causal form of `linear_attention` (Katharopoulos et al., 2020), with decays of
    both sums where given.

    Args:
      q, k: [B, L, H, K], not negative.  v: [B, L, H, V].
      log_decay: at most 0: [B, L, H, K], [B, L, H, 1] or [H]; None for no decay.
      epsilon: added to the denominator.

    Returns:
      [B, L, H, V] in at least float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> q = k = jnp.ones((1, 4, 1, 1))  # [B, L, H, K]
      >>> v = jnp.array([2.0, 4.0, 0.0, 2.0]).reshape(1, 4, 1, 1)
      >>> o = decay.causal_linear_attention(q, k, v, epsilon=0.0)
      >>> print(o.ravel())  # running means
      [2. 3. 2. 2.]
    """
    # A TPU has a kernel for widths that fill its registers.
    behind = decay_wide.power_of_two(v.shape[-1] + 1) - v.shape[-1] - 1
    filled = functools.partial(_divided, epsilon, behind)
    exactly = functools.partial(_divided, epsilon, 0)
    operands = q, k, v, log_decay
    return jax.lax.platform_dependent(*operands, tpu=filled, default=exactly)


def _divided(epsilon, behind, q, k, v, log_decay):
    """The first sums by the second ones, with so many channels of zeros behind both."""
    ones, channels = jnp.ones((*v.shape[:-1], 1), v.dtype), v.shape[-1]
    both = jnp.concatenate((v, ones), -1)
    both = jnp.pad(both, [(0, 0)] * (v.ndim - 1) + [(0, behind)])
    o, _ = chunked(q, k, both, log_decay)
    return o[..., :channels] / (o[..., channels : channels + 1] + epsilon)


def within_documents(
    log_decay: jax.Array,
    shape: tuple[int, ...],
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> jax.Array:
    """Decays that pass over padding and start anew with every document.

    Args:
      log_decay: [H] or [B, L, H, K or 1].  shape: (B, L).
      mask: bool [B, L]; at padding there is no decay.
      positions: [B, L]; where it is 0 nothing is left of what came before.

    Returns:
      [H] as given if there is neither, otherwise [B, L, H, K or 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> half = jnp.log(jnp.array([0.5]))
      >>> positions = jnp.array([[0, 1, 0, 1]])  # two documents of two tokens
      >>> inside = decay.within_documents(half, (1, 4), positions=positions)
      >>> print(jnp.exp(inside).ravel())
      [0.  0.5 0.  0.5]
    """
    if mask is None and positions is None:
        return log_decay
    if log_decay.ndim == 1:
        log_decay = log_decay.reshape(1, 1, -1, 1)
        log_decay = jnp.broadcast_to(log_decay, (*shape, *log_decay.shape[2:]))
    if positions is not None:
        starts = align_mask(positions == 0, log_decay)
        log_decay = jnp.where(starts, -jnp.inf, log_decay)
    if mask is not None:
        log_decay = jnp.where(align_mask(mask, log_decay), log_decay, 0)
    return log_decay


def diagonal(
    decay: jax.Array, added: jax.Array, state: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """h_t = decay_t * h_{t-1} + added_t, elementwise; all h and the last one.

    Args:
      decay, added: [B, L, D] in at least float32.
      state: [B, D], the h before the first position; None for zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.mixers import decay
      >>> factors = jnp.full((1, 4, 1), 0.5)  # [B, L, D]
      >>> h, last = decay.diagonal(factors, jnp.ones((1, 4, 1)))
      >>> print(h.ravel(), last)
      [1.    1.5   1.75  1.875] [[1.875]]
    """
    h = elementwise.recurrence(decay, added, state)
    return h, h[:, -1]


def _prepared(q, k, v, log_decay, state):
    """All in one type, at least float32; decays [B, L, H, K or 1] or None; a state."""
    dtype = jnp.result_type(q, k, v, jnp.float32)
    q, k, v = (t.astype(dtype) for t in (q, k, v))
    batch, length, heads = k.shape[:3]
    if log_decay is not None:
        log_decay = log_decay.astype(dtype)
        if log_decay.ndim == 1:
            shape = (batch, length, heads, 1)
            log_decay = jnp.broadcast_to(log_decay.reshape(1, 1, heads, 1), shape)
    if state is None:
        state = jnp.zeros((batch, heads, k.shape[-1], v.shape[-1]), dtype)
    return q, k, v, log_decay, state.astype(dtype)
