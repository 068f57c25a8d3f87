"""Attention by the angle of queries and keys: what makes its queries and its bias.

Functions of the module that calls them: parameters that they make are its own.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.broadcast import along_last
from normjax.core.dense import Dense, trunc_normal
from normjax.mixers.ops.aggregated import unit
from normjax.mixers.ops.log_offsets import log_offsets

_SHARPNESS = math.log(math.exp(1 / 0.24) - 1)  # softplus of it is 1 / 0.24


def cosine_queries(
    module: Any, q: jax.Array, count: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """(q / |q|, (q / |q| + e) softplus(t) log(count)) of heads q [..., H, K].

    Learned vectors e and sharpness t per head (TransNeXt; Shi, 2024). In at least
    float32.

    Args:
      module: gets `query_embedding` [H, K] and `temperature` [H].
      count: keys that a query sees, broadcastable to [..., H, K].
    """
    shape, dtype = q.shape[-2:], module.param_dtype
    constant = nn.initializers.constant(_SHARPNESS)
    embedding = module.param("query_embedding", trunc_normal, shape, dtype)
    temperature = module.param("temperature", constant, shape[:1], dtype)
    q = unit(q)
    sharpness = jax.nn.softplus(temperature.astype(q.dtype))[:, None]
    length = jnp.log(jnp.maximum(jnp.asarray(count, q.dtype), 1))
    placed = q + along_last(embedding.astype(q.dtype), q.ndim)
    return q, placed * along_last(sharpness, q.ndim) * length


def log_spaced_bias(
    module: Any, queries: tuple[int, int], keys: tuple[int, int], dtype: Any
) -> jax.Array:
    """[H, N, M], a layer of relu(layer(offset)) of every pair (Swin V2; Liu, 2022).

    Args:
      module: with `num_heads`, `position_features` and `trained_grid`; gets
        `position_fc1` and `position_fc2`.
      queries, keys: rows and columns.
    """
    trained = module.trained_grid or queries
    offsets, index = log_offsets(queries, keys, trained)
    types = {"kernel_init": trunc_normal, "param_dtype": module.param_dtype}
    h = Dense(module.position_features, name="position_fc1", **types)(
        jnp.asarray(offsets, dtype)
    )
    table = Dense(module.num_heads, name="position_fc2", **types)(jax.nn.relu(h))
    return jnp.moveaxis(table[index], -1, 0).astype(dtype)
