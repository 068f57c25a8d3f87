"""Gradients of the linear recurrence with decay, which are such recurrences."""

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT
from normjax.kernels.chunk_sizes import CHUNK, GONE, kind_of
from normjax.kernels.gated_linear_attention import gated_linear_attention


def gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    do: jax.Array,
    dlast: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """Of (o, last) = `gated_linear_attention`, for cotangents `do` and `dlast`.

    With the states S_t and, from the end, R_t = diag(d_{t+1}) R_{t+1} + q_t do_t^T,

        dq_t = S_t do_t    dk_t = R_t v_t    dv_t = R_t^T k_t
        dg_t = (diag(d_t) S_{t-1} * R_t) 1 = dg_{t+1} + q_t * dq_t - k_t * dk_t

    which is summed within a block of positions only, behind which the states say what
    it is, so that errors do not add up over all positions.

    Args:
      q, k, v, log_decay, state: its arguments.
      do: [B, L, H, V].  dlast: [B, H, K, V].
      interpret: compute it by JAX, on any platform.

    Returns:
      Gradients of the arguments, in float32.
    """
    kind = kind_of(log_decay)
    options = {"of_values": kind == "keys", "interpret": interpret}
    options |= {"each": log_decay is not None}
    first, end = jnp.swapaxes(state, -1, -2), jnp.swapaxes(dlast, -1, -2)
    dq, after = gated_linear_attention(do, v, k, log_decay, first, **options)
    options |= {"reverse": True}
    dk, before = gated_linear_attention(v, do, q, log_decay, end, **options)
    options |= {"of_values": False, "each": False}
    dv, dstate = gated_linear_attention(k, q, do, log_decay, dlast, **options)
    if log_decay is None:
        return dq, dk, dv, None, dstate
    behind = jnp.concatenate((before[:, 1:], end[:, None]), 1)
    rest = jnp.sum(after * behind, -2)  # [B, blocks, H, K]
    change = q.astype(dq.dtype) * dq - k.astype(dk.dtype) * dk
    if kind == "head":
        rest, change = (jnp.sum(t, -1, keepdims=True) for t in (rest, change))
    change = _sums_to_the_end(change, rest.shape[1])
    dg = (change + rest[:, :, None]).reshape(change.shape[0], -1, *change.shape[3:])
    dg = jnp.where(log_decay > GONE, dg[:, : q.shape[1]], 0)
    return dq, dk, dv, dg, dstate


def _sums_to_the_end(x: jax.Array, blocks: int) -> jax.Array:
    """Of positions [B, L, H, X] and those behind them in a block: [B, blocks, N, H, X].

    Products with ones, of chunks and then of all chunks of a block: sums over windows
    take the vector unit ten times as long.
    """
    length = -(-x.shape[1] // (blocks * CHUNK)) * blocks * CHUNK
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], blocks, -1, CHUNK, *x.shape[2:])
    behind = jnp.tri(CHUNK, dtype=x.dtype).T
    inside = jnp.einsum("ij,bncjhx->bncihx", behind, x, precision=EXACT)
    later = jnp.tri(x.shape[2], k=-1, dtype=x.dtype).T
    others = jnp.einsum("ij,bnjhx->bnihx", later, inside[:, :, :, 0], precision=EXACT)
    total = inside + others[:, :, :, None]
    return total.reshape(*total.shape[:2], -1, *total.shape[4:])
