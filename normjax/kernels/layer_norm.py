"""LayerNorm of narrow tokens, whose sums across lanes are what takes time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from normjax.kernels.attention import SUBLANES

_ROWS = 2048  # of a step


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, per position of maps.

    (Ba et al., 2016.) C (x - mean) is one product of the matrix unit with C I - 1,
    exact in bfloat16 for C up to 256, with sums in float32; what is left for the unit
    that sums across lanes are the squares.

    XLA lays maps out with the images in the rows of registers, which positions are
    counted in; eight images at least fill them.

    Args:
      x: bfloat16 [B, H, W, C].
      scale, bias: [C], or None for none.
      epsilon: added to the variance.
      interpret: compute it by JAX, on any platform.

    Returns:
      [B, H, W, C] in the dtype of x.
    """
    channels = x.shape[-1]
    factor = _row(1.0 if scale is None else scale, channels) * channels**0.5
    shift = _row(0.0 if bias is None else bias, channels)
    rows = _rows(x)
    (y,) = _over_rows(
        functools.partial(_kernel, epsilon=epsilon),
        (rows,),
        (_centering(channels), factor, shift),
        (jax.ShapeDtypeStruct(rows.shape, x.dtype),),
        name="layer_norm",
        interpret=interpret,
    )
    return _map(y, x)


def pullback(
    x: jax.Array,
    scale: jax.Array | None,
    dy: jax.Array,
    *,
    epsilon: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of `layer_norm` by x, scale and bias, from nothing that it kept.

    With n = (x - mean) / sqrt(var + epsilon) and g = dy * scale,

        dx = (g - mean(g) - n mean(g n)) / sqrt(var + epsilon)

    Args:
      x, scale, epsilon, interpret: its arguments.
      dy: bfloat16 [B, H, W, C].

    Returns:
      dx in the dtype of x; dscale and dbias [C] in float32.
    """
    channels = x.shape[-1]
    factor = _row(1.0 if scale is None else scale, channels)
    rows = _rows(x)
    sums = jax.ShapeDtypeStruct((SUBLANES, channels), jnp.float32)
    dx, dscale, dbias = _over_rows(
        functools.partial(_gradients, epsilon=epsilon, count=rows.shape[0]),
        (rows, _rows(dy)),
        (_centering(channels), factor),
        (jax.ShapeDtypeStruct(rows.shape, x.dtype), sums, sums),
        name="layer_norm_gradient",
        interpret=interpret,
    )
    return _map(dx, x), jnp.sum(dscale, 0), jnp.sum(dbias, 0)


def _over_rows(
    kernel: Callable[..., None],
    arrays: tuple[jax.Array, ...],
    rest: tuple[jax.Array, ...],
    made: tuple[jax.ShapeDtypeStruct, ...],
    **settings: Any,
) -> Any:
    """A block of rows a step of `arrays`, and of what is made of their shape."""

    def spec(x):
        if x.shape == arrays[0].shape:
            return pl.BlockSpec((_ROWS, x.shape[1]), lambda i: (i, 0))
        return pl.BlockSpec(x.shape, lambda i: (0, 0))

    return pl.pallas_call(
        kernel,
        made,
        grid=(pl.cdiv(arrays[0].shape[0], _ROWS),),
        in_specs=[spec(x) for x in (*arrays, *rest)],
        out_specs=tuple(map(spec, made)),
        **settings,
    )(*arrays, *rest)


def _rows(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 0, 2).reshape(-1, x.shape[-1])


def _map(rows: jax.Array, like: jax.Array) -> jax.Array:
    batch, *sides, channels = like.shape
    return jnp.moveaxis(rows.reshape(*sides, batch, channels), 2, 0)


def _row(values: Any, channels: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(values, jnp.float32), (1, channels))


def _centering(channels: int) -> jax.Array:
    """x @ this = C (x - mean)."""
    return (channels * jnp.eye(channels) - 1).astype(jnp.bfloat16)


def _centered(x, centering, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """C (x - mean), and C^-3/2 of the inverse root of the variance."""
    channels = x.shape[-1]
    wide = jnp.dot(x, centering, preferred_element_type=jnp.float32)
    square = jnp.sum(wide * wide, -1, keepdims=True)
    return wide, jax.lax.rsqrt(square + channels**3 * epsilon)


def _kernel(x, centering, scale, bias, y, *, epsilon: float):
    wide, root = _centered(x[...], centering[...], epsilon)
    y[...] = (wide * root * scale[...] + bias[...]).astype(y.dtype)


def _gradients(
    x, dy, centering, scale, dx, dscale, dbias, *, epsilon: float, count: int
):
    step, (rows, channels) = pl.program_id(0), x.shape
    given, g = x[...], dy[...].astype(jnp.float32)
    if count % rows:  # whatever lies behind the last one, NaN too
        there = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < count - step * rows
        given, g = jnp.where(there, given, 0), jnp.where(there, g, 0)
    wide, root = _centered(given, centering[...], epsilon)
    normalized = wide * (root * channels**0.5)
    by_scale, by_bias = _by_sublane(g * normalized), _by_sublane(g)
    g = g * scale[...]
    along = jnp.mean(g * normalized, -1, keepdims=True)
    level = jnp.mean(g, -1, keepdims=True)
    made = (g - level - normalized * along) * (root * channels**1.5)
    dx[...] = made.astype(dx.dtype)

    @pl.when(step == 0)
    def _():
        dscale[...] = jnp.zeros_like(dscale)
        dbias[...] = jnp.zeros_like(dbias)

    dscale[...] += by_scale
    dbias[...] += by_bias


def _by_sublane(x: jax.Array) -> jax.Array:
    """Sums of every eighth row."""
    return jnp.sum(x.reshape(-1, SUBLANES, x.shape[-1]), 0)
