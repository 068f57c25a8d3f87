"""The recurrence of `decay` for matrix units that multiply bfloat16.

Decays are applied as exp(c_i - c_j) with c the sum of the logarithms so far, so that a
block needs one product instead of one for each of its halvings. The difference of two
sums has an error of up to 1e-3 where decays are strong: too much for float32, less
than the rounding of bfloat16.
"""

import functools

import jax
import jax.numpy as jnp

from normjax.core.accumulate import EXACT
from normjax.kernels.choice import kernel_or_function
from normjax.kernels.chunk_sizes import GONE, fits

CHUNK, PART = 64, 16

Pair = tuple[jax.Array, jax.Array]


def on_a_tpu(
    chunk: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
) -> Pair:
    """`blocks` by a kernel, whose chunks are of its own size, with its gradients."""
    function, operands = functools.partial(blocks, chunk=chunk), (q, k, v, log_decay)
    if not fits(q, v, log_decay, state):
        return function(*operands, state)
    given = *operands, state
    return kernel_or_function(_kernel, function, given, pullback=_pullback)


def _kernel(*operands):
    # Here, for Pallas takes longer to import than all mixers.
    from normjax.kernels.gated_linear_attention import gated_linear_attention

    return gated_linear_attention(*operands)


def _pullback(operands, cotangents):
    from normjax.kernels.gated_linear_attention_gradient import gradients

    return gradients(*operands, *cotangents)


def blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    *,
    chunk: int = CHUNK,
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
) -> Pair:
    """`decay.chunked` with products of arrays in `dtype`; sums as wide as the state.

    Args:
      q, k: [B, L, H, K].  v: [B, L, H, V].  state: [B, H, K, V].
      log_decay: [B, L, H, K], [B, L, H, 1], or None.
      chunk: positions a block, a power of two.
    """
    wide, length = state.dtype, q.shape[1]
    if log_decay is None:
        log_decay = jnp.zeros((1, length, 1, 1), wide)
    product = functools.partial(jnp.einsum, preferred_element_type=wide)
    q, k, v = (_split(t.astype(dtype), chunk) for t in (q, k, v))
    gone = jnp.maximum(_split(log_decay.astype(wide), chunk), GONE)
    # A product: XLA sums over windows, which takes a TPU ten times as long.
    before = jnp.tri(chunk, dtype=wide)
    total = jnp.einsum("ij,bhnjx->bhnix", before, gone, precision=EXACT)
    last = total[..., -1:, :]

    def scaled(t, exponent):
        return (t.astype(wide) * jnp.exp(exponent)).astype(dtype)

    added = product("bhnck,bhncv->nbhkv", scaled(k, last - total), v)
    kept = jnp.moveaxis(jnp.exp(jnp.swapaxes(last, -1, -2)), 2, 0)
    before, state = _hand_on(kept, added, state)
    weights = _weights if total.shape[-1] == 1 else _weights_by_channel
    weights = jax.checkpoint(functools.partial(weights, product))(q, k, total)
    o = product("bhnij,bhnjv->bhniv", weights.astype(dtype), v)
    o += product("bhnck,nbhkv->bhncv", scaled(q, total), before.astype(dtype))
    o = jnp.moveaxis(o, 1, 3).reshape(o.shape[0], -1, *o.shape[1:2], o.shape[-1])
    return o[:, :length], state


def _split(t: jax.Array, chunk: int) -> jax.Array:
    """[B, L, H, X] -> [B, H, n, C, X], zeros behind the last position."""
    t = jnp.pad(t, ((0, 0), (0, -t.shape[1] % chunk), (0, 0), (0, 0)))
    return jnp.moveaxis(t.reshape(t.shape[0], -1, chunk, *t.shape[2:]), 3, 1)


def _hand_on(kept: jax.Array, added: jax.Array, state: jax.Array) -> Pair:
    """States before each of n blocks [n, B, H, K, V] and after the last: no loop."""

    def joined(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    added = added.at[0].add(kept[0] * state)
    _, after = jax.lax.associative_scan(joined, (kept, added), axis=0)
    return jnp.concatenate((state[None], after[:-1])), after[-1]


def _decays(total: jax.Array) -> jax.Array:
    """exp(c_i - c_j) where j <= i, else 0: [..., C, X] -> [..., C, C, X]."""
    size = total.shape[-2]
    order = jnp.tril(jnp.ones((size, size), bool))[..., None]
    order = order.reshape((1,) * (total.ndim - 2) + order.shape)
    difference = total[..., :, None, :] - total[..., None, :, :]
    return jnp.exp(jnp.where(order, difference, -jnp.inf))


def _weights(product, q: jax.Array, k: jax.Array, total: jax.Array) -> jax.Array:
    """q_i . k_j exp(c_i - c_j) [..., C, C] of blocks; one decay a position."""
    return product("bhnik,bhnjk->bhnij", q, k) * _decays(total)[..., 0]


def _weights_by_channel(product, q, k, total):
    """The same with a decay a channel.

    Inside parts of PART positions it is summed channel by channel; a part sees what is
    before it through the decays until its beginning and from there, both at most 1.
    """
    size, wide, dtype = q.shape[-2], total.dtype, q.dtype
    part = min(PART, size)

    def parts(t):
        return t.reshape(*t.shape[:3], -1, part, t.shape[-1])

    pairs = parts(q).astype(wide)[..., :, None, :] * parts(k)[..., None, :, :]
    near = jnp.sum(pairs * _decays(parts(total)), -1)
    rows = []
    for i, start in enumerate(range(0, size, part)):
        row = [near[..., i, :, :]]
        if start:
            begin = total[..., start - 1 : start, :]
            own = slice(start, start + part)
            asked = q[..., own, :] * jnp.exp(total[..., own, :] - begin)
            there = k[..., :start, :] * jnp.exp(begin - total[..., :start, :])
            far = asked.astype(dtype), there.astype(dtype)
            row.insert(0, product("bhnik,bhnjk->bhnij", *far))
        behind = size - start - part
        row = jnp.concatenate(row, -1)
        rows.append(jnp.pad(row, (*[(0, 0)] * (row.ndim - 1), (0, behind))))
    return jnp.concatenate(rows, -2)
