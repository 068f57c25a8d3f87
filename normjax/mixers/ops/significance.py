"""How much attention positions get, and positions grouped by it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32

SHARES = {2: (2, 2), 3: (1, 2, 1)}
"""By the number of groups: quarters of the positions in each."""


def received(
    q: jax.Array,
    k: jax.Array,
    mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
) -> jax.Array:
    """The mean weight of each key, softmax(q k^T / sqrt(K)): [B, M], without gradient.

    Over heads and queries, in at least float32.

    Args:
      q: [B, N, H, K].  k: [B, M, H, K].
      mask, query_mask: bool [B, M] and [B, N]; False is padding.
    """
    q, k = (at_least_float32(jax.lax.stop_gradient(t)) for t in (q, k))
    scores = jnp.einsum("bnhk,bmhk->bhnm", q * q.shape[-1] ** -0.5, k)
    if mask is not None:
        least = jnp.finfo(scores.dtype).min / 2
        scores = jnp.where(mask[:, None, None], scores, least)
    weights = jax.nn.softmax(scores)
    if query_mask is None:
        return jnp.mean(weights, (1, 2))
    asked = query_mask[:, None, :, None]
    count = jnp.maximum(jnp.sum(query_mask, 1), 1)[:, None]
    return jnp.sum(jnp.where(asked, weights, 0), (1, 2)) / (q.shape[2] * count)


def grouped(
    rows: jax.Array, significance: jax.Array, sizes: Sequence[int]
) -> list[jax.Array]:
    """Rows in groups of positions of like significance (SG-Former; Ren et al., 2023).

    From the least significant on, a quarter of the positions stands in groups of
    sizes[0], a half in groups of sizes[1] and the last quarter in groups of sizes[2];
    with two sizes there are two halves. Equal ones keep their order.

    Args:
      rows: [B, L, C].  significance: [B, L].

    Returns:
      A [B, L_i / sizes[i], sizes[i], C] of each part of L_i positions.

    Raises:
      UserError: another number of sizes than 2 or 3, or parts that do not divide.
    """
    batch, length, channels = rows.shape
    order = jnp.argsort(significance, 1, stable=True)
    rows = jnp.take_along_axis(rows, order[..., None], 1)
    quarter, rest = divmod(length, 4)
    lengths = [quarter * share for share in SHARES.get(len(sizes), ())]
    fits = all(size > 0 and n % size == 0 for n, size in zip(lengths, sizes))  # noqa: B905
    if rest or not quarter or not lengths or not fits:
        raise UserError(
            f"{length} positions do not split into groups of {tuple(sizes)}: of three "
            "sizes the first and the last take a quarter of the positions each, of two "
            "each a half"
        )
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
    parts = jnp.split(rows, ends, 1)
    return [
        part.reshape(batch, -1, size, channels)
        for part, size in zip(parts, sizes, strict=True)
    ]
