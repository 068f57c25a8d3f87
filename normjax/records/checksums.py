"""Checksums of arrays: what was written is what is read, on any devices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(tree: Any) -> dict[str, int]:
    """The checksum of every array of a tree, by its path ("params/head/bias").

    sum_i (2 i + 1) b_i mod 2^32, where b_i are the bits of element i in row-major
    order (of 64 bits: the sum of both halves). The factors are odd, so that a change
    within 32 bits always shows, any other with probability 1 - 2^-32. The sum is exact
    in any order: every device adds up what it holds, however the arrays are split.
    Where they are split over processes, all of them must call.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    parts = [_parts(x) for _, x in leaves]
    sums = [sum(map(int, part)) % 2**32 for part in jax.device_get(parts)]
    spread = np.array([not x.is_fully_addressable for _, x in leaves])
    if spread.any():
        from jax.experimental import multihost_utils

        mine = np.array(sums, np.uint32)
        everyone = multihost_utils.process_allgather(mine).sum(0, dtype=np.uint32)
        sums = np.where(spread, everyone, mine)
    names = (jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves)
    return {name: int(total) for name, total in zip(names, sums, strict=True)}


def _parts(x: jax.Array) -> list[jax.Array]:
    """Sums over the parts of `x` that lie on this process's devices, each part once."""
    sizes = [math.prod(x.shape[dim + 1 :]) for dim in range(x.ndim)]
    strides = np.array(sizes, np.uint64).astype(np.uint32)
    return [
        _weighted_sum(
            shard.data,
            np.array([s.start or 0 for s in shard.index], np.uint64).astype(np.uint32),
            strides,
        )
        for shard in x.addressable_shards
        if shard.replica_id == 0
    ]


@jax.jit
def _weighted_sum(x: jax.Array, starts: jax.Array, strides: jax.Array) -> jax.Array:
    """Of one part, whose first element has the index `starts` in the whole."""
    shape = x.shape
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    if bits.ndim > len(shape):
        bits = jnp.sum(bits, axis=-1, dtype=jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    for dim in range(len(shape)):
        here = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
        index += (here + starts[dim]) * strides[dim]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
