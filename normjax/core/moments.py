"""Moments that survive masks, shards, large means and low precision."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or in its own type where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def align_mask(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A boolean mask with the rank of `x`: missing trailing dims are added.

    Args:
      mask: bool or 0/1, its dims those of `x` from the left (1 where it broadcasts).
      x: [...].

    Raises:
      ValueError: the mask has more dims than `x` or does not broadcast to it.
    """
    if mask.ndim > x.ndim:
        raise ValueError(f"mask of shape {mask.shape} for an input of shape {x.shape}")
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).astype(bool)
    if any(m not in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
        raise ValueError(f"mask of shape {mask.shape} for an input of shape {x.shape}")
    return mask


def masked_mean(
    x: jax.Array,
    axes: Sequence[int],
    *,
    mask: jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean and count of `x` over `axes`, in at least float32.

    Arguments and reduction as in `masked_moments`.

    Returns:
      (mean, count), each with `axes` kept as size 1; count 0 gives zeros.
    """
    axes = tuple(axes)
    x = at_least_float32(x)
    valid = None if mask is None else align_mask(mask, x)

    def total(v):
        s = jnp.sum(v, axes, keepdims=True, where=valid)
        return s if axis_name is None else jax.lax.psum(s, axis_name)

    summed = total(x)
    if valid is None:
        size = 1
        for axis in axes:
            size *= x.shape[axis]
        if axis_name is not None:
            size *= jax.lax.axis_size(axis_name)
        count = jnp.full(summed.shape, size, x.dtype)
    else:
        count = total(jnp.broadcast_to(valid, x.shape).astype(x.dtype))
    return summed / jnp.maximum(count, 1), count


def masked_moments(
    x: jax.Array,
    axes: Sequence[int],
    *,
    mask: jax.Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, biased variance and count of `x` over `axes`, in at least float32.

    mean = sum(x) / n,  var = sum((x - mean)**2) / n: two passes, so a mean of 1e4
    costs no precision. Sums and counts are reduced across `axis_name` before dividing,
    so shards with different numbers of valid positions weigh correctly.

    Args:
      x: [..., C].  axes: dims to reduce.
      mask: which positions count; see `align_mask`.  None: all.
      axis_name: mesh axis or axes to reduce over as well.

    Returns:
      (mean, var, count), each with `axes` kept as size 1; count 0 gives zeros.
    """
    over = {"mask": mask, "axis_name": axis_name}
    mean, count = masked_mean(x, axes, **over)
    var, _ = masked_mean(jnp.square(at_least_float32(x) - mean), axes, **over)
    return mean, var, count
