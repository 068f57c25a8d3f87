"""Distances of tokens, and numbers that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2**(-8 i / H) for i = 1..H; published order for other than powers of two.

    ALiBi (Press et al., 2022): then the slopes of the lower power of two, followed by
    every second one of the next.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, lower + 1) / lower)
    finer = 2.0 ** (-4 * np.arange(1, 2 * lower + 1) / lower)
    return np.concatenate((slopes, finer[::2][: num_heads - lower]))


def slopes_of_layer(num_heads: int, layer: int, num_layers: int) -> np.ndarray:
    """`alibi_slopes` times 1 - layer / (num_layers - 1) + 1e-5: less in deeper layers.

    TransNormerLLM (Qin et al., 2023). One layer alone has the factor 1 + 1e-5.
    """
    depth = 1 - layer / max(num_layers - 1, 1) + 1e-5
    return alibi_slopes(num_heads) * depth


def distances(
    queries: int, keys: int, positions: jax.Array | None = None
) -> np.ndarray | jax.Array:
    """max(i - j, 0) of queries i and earlier keys j, [1 or B, 1, N, M].

    Args:
      queries, keys: N and M.
      positions: int [B, N], of the queries, while keys are at 0 to M - 1; None: the
        last query is at the place of the last key, and the result is a constant.
    """
    if positions is not None:
        places = jnp.arange(keys).reshape(1, 1, 1, -1)
        return jnp.maximum(positions[:, None, :, None] - places, 0)
    rows = np.arange(keys - queries, keys)
    return np.maximum(rows[:, None] - np.arange(keys), 0)[None, None]


def power(distance: np.ndarray | jax.Array, exponent: jax.Array) -> jax.Array:
    """distance**exponent, whose derivative by the exponent is 0 at distance 0."""
    apart = jnp.asarray(distance, exponent.dtype)
    return jnp.where(apart > 0, jnp.where(apart > 0, apart, 1) ** exponent, 0)
