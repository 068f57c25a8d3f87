"""Offsets between two grids over one map, spaced by their logarithm."""

import numpy as np

from normjax.mixers.ops.partition import bins


def log_offsets(
    queries: tuple[int, int], keys: tuple[int, int], trained: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The different offsets of queries and keys, and which one each pair has.

    With t = 8 (row of the query - row of the key) / (rows of `trained` - 1), columns
    likewise, an offset is sign(t) log2(|t| + 1) / log2(8) (Swin V2; Liu et al., 2022).
    Keys of a coarser grid are at the mean of the places that they pool.

    Args:
      queries, keys: (rows, columns).
      trained: those of the queries when the weights were trained.

    Returns:
      (offsets float64 [U, 2], index int [N, M] into them), row-major.
    """
    tables, places = zip(*map(_one_side, queries, keys, trained), strict=True)
    rows, columns = np.meshgrid(*tables, indexing="ij")
    index = places[0][:, None, :, None] * len(tables[1]) + places[1][None, :, None]
    pairs = queries[0] * queries[1], keys[0] * keys[1]
    return np.stack((rows.ravel(), columns.ravel()), -1), index.reshape(pairs)


def _one_side(queries: int, keys: int, trained: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.arange(queries)
    t = 8 * (at[:, None] - bins(queries, keys) @ at) / max(trained - 1, 1)
    # Equal but for rounding are equal.
    _, first, index = np.unique(np.round(t, 9), return_index=True, return_inverse=True)
    t = t.ravel()[first]
    return np.sign(t) * np.log2(np.abs(t) + 1) / 3, index.reshape(queries, keys)
