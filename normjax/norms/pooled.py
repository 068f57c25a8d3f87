"""Normalization by the moments of a pool of entries, its gradient written by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from normjax.core.moments import align_mask, at_least_float32, masked_moments
from normjax.core.spmd import match_varying
from normjax.norms.base import affine_gradients, apply_affine


@dataclasses.dataclass(frozen=True)
class Pool:
    """Which entries of x share a mean and a variance: all along `axes`.

    Subclasses may cut these entries into several pools. A pooled array then has one
    row a pool; `spread` brings it back beside x.

    Attributes:
      axes: dims of x; they stay, as size 1, in pooled arrays.
      axis_name: mesh axis or axes to reduce over as well.
    """

    axes: tuple[int, ...]
    axis_name: str | tuple[str, ...] | None = None

    def moments(
        self, x: jax.Array, valid: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(mean, biased variance, count) of the valid entries; see `masked_moments`."""
        return masked_moments(x, self.axes, mask=valid, axis_name=self.axis_name)

    def total(self, v: jax.Array) -> jax.Array:
        """Sums over the pools of `v`, which has the shape of x."""
        total = jnp.sum(v, self.axes, keepdims=True)
        return total if self.axis_name is None else jax.lax.psum(total, self.axis_name)

    def spread(self, pooled: jax.Array, x: jax.Array) -> jax.Array:
        """A pooled array with every entry's own pool, broadcastable to x."""
        del x
        return pooled


def pool_normalize(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    pool: Pool,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias by the moments of each pool.

    The gradient goes through the moments; it is written by hand (reverse mode) and
    keeps x and the moments, nothing else.

    Args:
      x: [...].
      scale, bias: the last dims of x, 1 where they broadcast; None for none.
      mask: leading or all dims of x; True feeds the moments.  None: all.

    Returns:
      (y of the shape of x; mean, var and count of every pool) in at least float32.
      The moments carry no gradient.
    """
    valid = None if mask is None else align_mask(mask, x)
    return _normalize(*match_varying(x, scale, bias), valid, pool, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _normalize(x, scale, bias, valid, pool, epsilon):
    return _forward(x, scale, bias, valid, pool, epsilon)[0]


def _forward(x, scale, bias, valid, pool, epsilon):
    mean, var, count = pool.moments(x, valid)
    inverse_root = jax.lax.rsqrt(var + epsilon)
    saved = (x, mean, inverse_root, count, scale, bias, valid)
    y = apply_affine(_normalized(x, mean, inverse_root, pool), scale, bias)
    return (y, mean, var, count), saved


def _normalized(x, mean, inverse_root, pool):
    return (at_least_float32(x) - pool.spread(mean, x)) * pool.spread(inverse_root, x)


def _backward(pool, epsilon, saved, cotangents):
    del epsilon
    x, mean, inverse_root, count, scale, bias, valid = saved
    normalized = _normalized(x, mean, inverse_root, pool)
    g, dscale, dbias = affine_gradients(cotangents[0], normalized, scale, bias)

    def mean_over_pool(v):
        return pool.spread(pool.total(v) / jnp.maximum(count, 1), x)

    through = mean_over_pool(g) + normalized * mean_over_pool(g * normalized)
    if valid is not None:
        # Positions outside the mask are normalised but move no moment.
        through = jnp.where(valid, through, 0)
    dx = pool.spread(inverse_root, x) * (g - through)
    return dx.astype(x.dtype), dscale, dbias, None


_normalize.defvjp(_forward, _backward)
