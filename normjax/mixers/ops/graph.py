"""Attention along the edges of graphs, and positions of their nodes."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.moments import at_least_float32

_LARGEST = 5.0  # of a score, as released


def graph_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    adjacency: jax.Array,
    edges: jax.Array | None = None,
    *,
    epsilon: float = 0.0,
) -> tuple[jax.Array, jax.Array | None]:
    """o_i = sum_j w_ij v_j / sum_j w_ij over the edges j -> i.

        s_ij = q_i k_j e_ij / sqrt(K), elementwise    w_ij = exp(clip(sum s_ij, -5, 5))

    (Dwivedi and Bresson, 2020) with e_ij = 1 where there are no `edges`. In at least
    float32. The clip passes no gradient outside. A node without incoming edge gets 0
    (released: NaN).

    Args:
      q, k, v: [B, N, H, K].
      adjacency: bool, broadcastable to [B, N, N]; [b, i, j] is an edge from j to i.
      edges: [B, N, N, H, K], what an edge multiplies its scores with.
      epsilon: added to the denominator.

    Returns:
      o [B, N, H, K] and, beside `edges`, s [B, N, N, H, K], 0 where there is no edge;
      in at least float32.
    """
    q, k, v = (at_least_float32(t) for t in (q, k, v))
    scale = q.shape[-1] ** -0.5
    there = adjacency[:, None]  # [B, 1, N, N]
    if edges is None:
        scores, each = jnp.einsum("bihk,bjhk->bhij", q, k) * scale, None
    else:
        edges = jnp.where(adjacency[..., None, None], at_least_float32(edges), 0)
        each = q[:, :, None] * k[:, None] * scale * edges
        scores = jnp.moveaxis(jnp.sum(each, -1), 3, 1)
    weights = jnp.where(there, jnp.exp(jnp.clip(scores, -_LARGEST, _LARGEST)), 0)
    total = jnp.sum(weights, -1)
    o = jnp.einsum("bhij,bjhk->bihk", weights, v)
    total = jnp.where(total > 0, total + epsilon, 1)
    return o / jnp.moveaxis(total, 1, 2)[..., None], each


def all_pairs(nodes: int, mask: jax.Array | None = None) -> jax.Array:
    """bool [1 or B, N, N]: edges between all pairs of (valid) nodes, not to itself."""
    pairs = jnp.asarray(~np.eye(nodes, dtype=bool))[None]
    return pairs if mask is None else pairs & mask[:, None, :] & mask[:, :, None]


def flip_signs(key: jax.Array, positions: jax.Array) -> jax.Array:
    """[..., D] with one random sign for each of the D positions, as in training.

    Args:
      key: of the random signs.
      positions: [..., D].

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> flipped = mixers.flip_signs(jax.random.key(0), jnp.ones((5, 2)))
      >>> bool((jnp.abs(flipped) == 1).all()), bool((flipped == flipped[:1]).all())
      (True, True)
    """
    signs = jax.random.rademacher(key, positions.shape[-1:], positions.dtype)
    return positions * signs.reshape((1,) * (positions.ndim - 1) + signs.shape)
