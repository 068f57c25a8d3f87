"""Rotary positions: pairs of channels turned by an angle that grows with the position.

For a pair (a, b) and the angle t: (a cos t - b sin t, b cos t + a sin t), so that the
product of a query and a key depends on the difference of their positions alone
(RoFormer; Su et al., 2021). Angles and products in at least float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.broadcast import computed_once
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32


def rotary_frequencies(channels: int, base: float = 10000.0) -> np.ndarray:
    """base**(-2 i / R) for R channels, [R / 2] float64."""
    half = channels // 2
    return base ** (-np.arange(half) / half)


def rotate_halves(
    x: jax.Array, positions: jax.Array, base: float = 10000.0
) -> jax.Array:
    """Channel i of R turns with channel i + R / 2, by positions * base**(-2 i / R).

    Args:
      x: [B, L, H, R], R even.  positions: [B, L] or [1, L].

    Raises:
      UserError: R is odd.
    """
    if x.shape[-1] % 2:
        width = x.shape[-1]
        raise UserError(f"heads of {width} channels: rotation needs an even number")
    frequencies = rotary_frequencies(x.shape[-1], base).reshape(1, 1, 1, -1)
    angles = at_least_float32(positions)[:, :, None, None] * jnp.asarray(
        frequencies, jnp.promote_types(x.dtype, jnp.float32)
    )
    first, second = jnp.split(at_least_float32(x), 2, -1)
    cos, sin = computed_once(jnp.cos(angles)), computed_once(jnp.sin(angles))
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, -1).astype(x.dtype)


def place(
    q: jax.Array, k: jax.Array, positions: jax.Array | None, base: float | None
) -> tuple[jax.Array, jax.Array]:
    """Queries and keys of the same tokens after `rotate_halves`; as given without base.

    Args:
      positions: int [B, L]; None: 0, 1, ... in every row.
    """
    if base is None:
        return q, k
    places = jnp.arange(q.shape[1])[None] if positions is None else positions
    q, k = (rotate_halves(t, places, base) for t in (q, k))
    return q, k


def grid_angles(height: int, width: int, channels: int) -> np.ndarray:
    """Angles of a map, [H, W, channels / 2], for `rotate_pairs`.

    The first half of the pairs turns with the row, the second with the column, at
    frequencies from 1 to 1 / 10,000 (RALA; Fan et al., 2025). `channels` is a multiple
    of 4.
    """
    frequencies = 10000.0 ** -np.linspace(0, 1, channels // 4)
    rows, columns = np.indices((height, width))[..., None] * frequencies
    return np.concatenate((rows, columns), -1)


def rotate_pairs(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Channel 2 i turns with channel 2 i + 1.

    Args:
      x: [B, L, H, K].  angles: [L, K / 2].
    """
    return turn_pairs(x, *(f(angles)[None, :, None] for f in (np.cos, np.sin)))


def turn_pairs(x: jax.Array, cos: jax.Array | np.ndarray, sin: jax.Array | np.ndarray):
    """`rotate_pairs` by angles of which cosine and sine are known.

    Args:
      x: [B, L, H, K].  cos, sin: broadcastable to [B, L, H, K / 2].
    """
    wide = at_least_float32(x).reshape(*x.shape[:-1], -1, 2)
    a, b = wide[..., 0], wide[..., 1]
    cos, sin = jnp.asarray(cos, wide.dtype), jnp.asarray(sin, wide.dtype)
    turned = jnp.stack((a * cos - b * sin, b * cos + a * sin), -1)
    return turned.reshape(x.shape).astype(x.dtype)


def linearized(x: jax.Array, positions: jax.Array, theta: jax.Array) -> jax.Array:
    """[x cos(n theta), x sin(n theta)]: LRPE (Qin et al., 2023), [B, L, H, 2 K].

    The product of a query at n and a key at m is sum_c q_c k_c cos((n - m) theta_c).

    Args:
      x: [B, L, H, K].  positions: [B, L] or [1, L].  theta: [H, K].
    """
    x, theta = at_least_float32(x), at_least_float32(theta)
    angles = at_least_float32(positions)[:, :, None, None] * theta[None, None]
    cos, sin = computed_once(jnp.cos(angles)), computed_once(jnp.sin(angles))
    return jnp.concatenate((x * cos, x * sin), -1)
