"""Attention to what is near and to what is pooled, in one softmax."""

import jax
import jax.numpy as jnp

from normjax.core.broadcast import along_last
from normjax.core.moments import at_least_float32


def unit(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) over the last axis, in at least float32."""
    x = at_least_float32(x)
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    # The derivative of the square root at 0 must meet no number.
    size = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / jnp.where(square > 0, jnp.maximum(size, 1e-12), 1e-12)


def shifted(x: jax.Array, size: int) -> list[jax.Array]:
    """The s x s maps of neighbours of x [B, H, W, ...], 0 beyond the map."""
    height, width = x.shape[1:3]
    rim = (size // 2, size // 2)
    x = jnp.pad(x, ((0, 0), rim, rim, *((0, 0),) * (x.ndim - 3)))
    places = [(i, j) for i in range(size) for j in range(size)]
    return [x[:, i : i + height, j : j + width] for i, j in places]


def aggregated_attention(
    q: jax.Array,
    near: tuple[jax.Array, jax.Array],
    far: tuple[jax.Array, jax.Array],
    *,
    near_bias: jax.Array,
    far_bias: jax.Array,
    extra: jax.Array,
    near_seen: jax.Array,
    far_seen: jax.Array | None = None,
) -> jax.Array:
    """One softmax over the neighbours of a position and a pooled map (Shi, 2024).

        (a, b) = softmax([q k_near + bias, q k_far + bias])
        o = (a + extra) v_near + b v_far

    What is hidden has no weight a, but its `extra`. No scale. O(L (s**2 + M) D)
    multiply-adds for s x s neighbours and M pooled positions. At least float32.

    Args:
      q: [B, H, W, h, K].
      near: keys and values of the positions, each [B, H, W, h, K].
      far: keys and values [B, M, h, K].
      near_bias: [h, s * s].  far_bias: [h, H * W, M].
      extra: [B, H, W, h, s * s].
      near_seen: bool [1 or B, H, W, s * s].  far_seen: bool [B, M]; None: all.

    Returns:
      [B, H, W, h, K].
    """
    q, (k, v), (far_k, far_v) = jax.tree.map(at_least_float32, (q, near, far))
    shape, size = q.shape, round(near_bias.shape[-1] ** 0.5)
    rows = q.reshape(shape[0], -1, *shape[3:])
    least = jnp.finfo(q.dtype).min / 2  # finite, so that an empty row has no NaN
    a = jnp.stack([jnp.sum(q * t, -1) for t in shifted(k, size)], -1)
    a = a + along_last(near_bias, a.ndim)
    a = jnp.where(near_seen[:, :, :, None], a, least)
    b = jnp.einsum("bnhk,bmhk->bnhm", rows, far_k) + jnp.moveaxis(far_bias, 0, 1)[None]
    if far_seen is not None:
        b = jnp.where(far_seen[:, None, None], b, least)
    b = b.reshape(*shape[:4], -1)
    largest = jnp.maximum(jnp.max(a, -1, keepdims=True), jnp.max(b, -1, keepdims=True))
    a, b = (jnp.exp(t - jax.lax.stop_gradient(largest)) for t in (a, b))
    total = jnp.sum(a, -1, keepdims=True) + jnp.sum(b, -1, keepdims=True)
    a = a / total + extra
    taps = enumerate(shifted(v, size))
    o = sum((a[..., i, None] * t for i, t in taps), start=jnp.zeros((), q.dtype))
    weights = (b / total).reshape(*rows.shape[:3], -1)
    return o + jnp.einsum("bnhm,bmhk->bnhk", weights, far_v).reshape(shape)
