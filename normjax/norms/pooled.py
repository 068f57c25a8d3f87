"""Normalization by the moments of a pool of entries, its gradient written by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from normjax.core.backward import custom_backward
from normjax.core.moments import align_mask, at_least_float32
from normjax.core.spmd import match_varying
from normjax.core.tracing import traced_once
from normjax.norms.base import along_channels, apply_affine, sum_like

# Sums of x and x**2 cost one reading each, (x - mean)**2 a writing more. They are exact
# enough up to this mean**2 / var: the variance loses it times the rounding error.
_LARGE_MEAN = 100.0


@dataclasses.dataclass(frozen=True)
class Pool:
    """Which entries of x share a mean and a variance: all along `axes`.

    Subclasses put more or less than that into one pool, by `combine` and `spread`.

    Attributes:
      axes: dims of x, not the channels; they stay, as size 1, in pooled arrays.
      axis_name: mesh axis or axes to reduce over as well.
    """

    axes: tuple[int, ...]
    axis_name: str | tuple[str, ...] | None = None

    def combine(self, partial: jax.Array) -> jax.Array:
        """Sums along `axes`, kept as size 1, as sums over the pools."""
        name = self.axis_name
        return partial if name is None else jax.lax.psum(partial, name)

    def spread(self, pooled: jax.Array, x: jax.Array) -> jax.Array:
        """A pooled array with every entry's own pool, broadcastable to x."""
        del x
        return pooled

    def total(self, v: jax.Array) -> jax.Array:
        """Sums over the pools of `v`, which has the shape of x."""
        return self.combine(jnp.sum(v, self.axes, keepdims=True))

    def count(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Number of the valid entries of every pool, in at least float32."""
        dtype = at_least_float32(x).dtype
        if valid is not None:
            return self.total(jnp.broadcast_to(valid, x.shape).astype(dtype))
        size = math.prod(x.shape[axis] for axis in self.axes)
        shape = [1 if i in self.axes else n for i, n in enumerate(x.shape)]
        return self.combine(jnp.full(shape, size, dtype))

    def moments(
        self, x: jax.Array, valid: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(mean, biased variance, count) of the valid entries; no gradient rule.

        sum((x - mean)**2) / n; on CPU sum(x**2) / n - mean**2 where the means are small
        enough for it to be as good.
        """
        count = self.count(x, valid)
        n = jnp.maximum(count, 1)
        wide = at_least_float32(x)
        shown = wide if valid is None else jnp.where(valid, wide, 0)
        mean = self.total(shown) / n

        def two_pass(x, mean):
            centered = _centered(x, mean, self)
            if valid is not None:
                centered = jnp.where(valid, centered, 0)
            return self.total(jnp.square(centered)) / n

        def one_pass(x, mean):
            square = jnp.square(mean)
            var = self.total(jnp.square(at_least_float32(x))) / n - square
            var = jnp.maximum(var, 0)
            large = jnp.any(square > _LARGE_MEAN * var)
            # The narrow x: a condition keeps what it takes, and memory costs time.
            return jax.lax.cond(large, two_pass, lambda x, mean: var, x, mean)

        if valid is not None or self.axis_name is not None:
            return mean, two_pass(x, mean), count
        # On GPUs a condition would make the host wait.
        var = jax.lax.platform_dependent(x, mean, cpu=one_pass, default=two_pass)
        return mean, var, count


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

    The gradient goes through the moments; its backward pass is written by hand and
    keeps x and the moments, nothing else.

    Args:
      x: [..., C].
      scale, bias: [C], or None for none.
      mask: leading or all dims of x; True feeds the moments.  None: all.

    Returns:
      (y of the shape of x; mean, var and count of every pool) in at least float32.
      The moments carry no gradient.
    """
    valid = None if mask is None else align_mask(mask, x)
    return _normalize_once(*match_varying(x, scale, bias), valid, pool, epsilon)


@traced_once("pool", "epsilon")
def _normalize_once(x, scale, bias, valid, pool, epsilon):
    return _normalize(x, scale, bias, valid, pool, epsilon)


@functools.partial(custom_backward, nondiff_argnums=(4, 5))
def _normalize(x, scale, bias, valid, pool, epsilon):
    y, *moments = _forward(x, scale, bias, valid, pool, epsilon)[0]
    return y, *map(jax.lax.stop_gradient, moments)


def _forward(x, scale, bias, valid, pool, epsilon):
    mean, var, count = pool.moments(x, valid)
    inverse_root = jax.lax.rsqrt(var + epsilon)
    saved = (x, mean, inverse_root, count, scale, bias, valid)
    y = _centered(x, mean, pool) * _gain(inverse_root, scale, x, pool)
    return (apply_affine(y, None, bias), mean, var, count), saved


def _gain(inverse_root, scale, x, pool):
    """What the centred entries are multiplied by; small, so that it is made once."""
    gain = pool.spread(inverse_root, x)
    return gain if scale is None else gain * along_channels(scale, x.ndim)


def _centered(x, mean, pool):
    return at_least_float32(x) - pool.spread(mean, x)


def _backward(pool, epsilon, saved, cotangents):
    del epsilon
    x, mean, inverse_root, count, scale, bias, valid = saved
    dy, centered = cotangents[0], _centered(x, mean, pool)
    # All that needs dy as a whole are these two sums: the scale is constant along them.
    along = jnp.sum(dy, pool.axes, keepdims=True)
    across = jnp.sum(dy * centered, pool.axes, keepdims=True)
    across *= pool.spread(inverse_root, across)
    dbias = None if bias is None else sum_like(along, bias)
    dscale = None if scale is None else sum_like(across, scale)

    def through(partial):
        """What the slope along a moment of a pool adds to every entry of it."""
        if scale is not None:
            partial = partial * along_channels(scale, x.ndim)
        return inverse_root * pool.combine(partial) / jnp.maximum(count, 1)

    lost = pool.spread(through(along), x)
    lost += centered * pool.spread(inverse_root * through(across), x)
    if valid is not None:
        # Positions outside the mask are normalised but move no moment.
        lost = jnp.where(valid, lost, 0)
    dx = dy * _gain(inverse_root, scale, x, pool) - lost
    return dx.astype(x.dtype), dscale, dbias, None


_normalize.defvjp(_forward, _backward)
