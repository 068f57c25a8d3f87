"""Broadcasting over a batch and averaging over positions, fast on CPU as well."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.accumulate import EXACT, einsum
from normjax.core.moments import at_least_float32
from normjax.core.tracing import traced_once


def repeat_over_batch(table: jax.Array, batch: int) -> jax.Array:
    """The same table for every example: [...] -> [batch, ...].

    Written as a product with ones. The forward pass is a plain broadcast, as XLA sees
    through it; the gradient is a matrix product where a sum over the leading axis would
    take XLA's CPU backend 20 times as long (measured for 16 maps of 14 x 14 x 192).
    """
    ones = jnp.ones((batch,), table.dtype)
    return jnp.einsum("b,...->b...", ones, table, precision=EXACT)


def along_last(table: jax.Array, rank: int) -> jax.Array:
    """[...] -> [1, ..., 1, ...] of the given rank: no implicit rank promotion."""
    return table.reshape((1,) * (rank - table.ndim) + table.shape)


def mean_over_positions(x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, C], in the dtype of x; sums in at least float32.

    Written as a product. XLA's CPU backend pulls the layers before a sum into its loop:
    a DeiT-tiny of 16 images took 5 % longer.
    """
    tokens = at_least_float32(x.reshape(x.shape[0], -1, x.shape[-1]))
    weights = jnp.full(tokens.shape[1], 1 / tokens.shape[1], tokens.dtype)
    mean = einsum("l,blc->bc", weights, tokens)
    return mean.astype(x.dtype)


@traced_once()
def computed_once(x: jax.Array) -> jax.Array:
    """x itself, [B, L, ...], kept out of the loops of what reads it.

    On CPU XLA computes cheap-looking tables anew in every iteration of the loop that
    broadcasts them; cosines and sines of positions took ten times as long as the
    rotation. A gather is not pulled in.
    """

    def gathered(x):
        return x[:, np.arange(x.shape[1])]

    return jax.lax.platform_dependent(x, cpu=gathered, default=lambda x: x)


def add_bias(y: Any, bias: jax.Array) -> Any:
    """y + bias along the last axis, in the dtype of y.

    Args:
      y: [..., C], or a tree of arrays that are its parts along the last axis.
      bias: [C].
    """
    parts = jax.tree.leaves(y)
    biases = jnp.split(bias, np.cumsum([part.shape[-1] for part in parts])[:-1])
    wide = [
        part + b.astype(part.dtype).reshape((1,) * (part.ndim - 1) + b.shape)
        for part, b in zip(parts, biases, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(y), wide)
