"""Which positions count and which keys a query sees."""

import jax
import jax.numpy as jnp

from normjax.core.moments import align_mask


def documents_of(positions: jax.Array) -> jax.Array:
    """[B, L] positions, 0 where a document starts -> [B, L] number of the document."""
    return jnp.cumsum(positions == 0, axis=1)


def visible_keys(
    mask: jax.Array | None, positions: jax.Array | None
) -> jax.Array | None:
    """Which key a query may see: bool, broadcastable to [B, 1, N, M]; None: every one.

    Args:
      mask: bool [B, M]; False is padding.
      positions: [B, L] of packed documents, which do not see each other.
    """
    visible = None if mask is None else mask[:, None, None, :]
    if positions is None:
        return visible
    document = documents_of(positions)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same if visible is None else same & visible


def only_tokens(t: jax.Array, mask: jax.Array | None) -> jax.Array:
    """t [B, L, ...] with 0 at padding, for 0 times NaN of padding is NaN."""
    return t if mask is None else jnp.where(align_mask(mask, t), t, 0)


def only_valid(t: jax.Array, mask: jax.Array | None) -> jax.Array:
    """t [B, H, W, C] with 0 where `mask` [B, H, W] is False."""
    return t if mask is None else jnp.where(mask[..., None], t, 0)
