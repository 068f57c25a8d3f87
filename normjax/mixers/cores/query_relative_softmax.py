"""Softmax attention with a bias of query and offset as a core."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.mixers.base import CORES
from normjax.mixers.ops.attend import softmax_over_maps
from normjax.mixers.ops.heads import split_heads
from normjax.mixers.steps import sized_table


@CORES.register("query_relative_softmax")
class QueryRelativeSoftmax(nn.Module):
    """softmax(q k^T / sqrt(K) + q . (R + S)) v with vectors R, S by offset.

    R_ij = height[H' - 1 - yi + yj] and S_ij = width[W' - 1 - xi + xj], learned vectors
    of K numbers that the heads share (Ramachandran et al., 2019). Queries are counted
    from the first key of their map, whatever the smaller map of queries stands for
    (HaloNet; Vaswani et al., 2021). Regions are ignored.

    Attributes:
      num_heads: heads.
      dtype: unused: the result has the type of the queries.
      param_dtype: of the tables.

    Example:
      >>> import jax
      >>> from normjax.mixers import cores
      >>> core = cores.QueryRelativeSoftmax(num_heads=2)
      >>> q = jax.random.normal(jax.random.key(0), (1, 2, 2, 8))  # [B, H, W, D]
      >>> k = jax.random.normal(jax.random.key(1), (1, 4, 4, 8))
      >>> o, variables = core.init_with_output(jax.random.key(2), q, k, k)
      >>> o.shape, [p.shape for p in jax.tree.leaves(variables)]  # 7 offsets
      ((1, 2, 2, 8), [(7, 4), (7, 4)])
    """

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: jax.Array | None = None,
        regions: np.ndarray | None = None,
    ) -> jax.Array:
        """q: [B, H, W, D], k: [B, H', W', D], v: [B, H', W', V] -> [B, H, W, V].

        Raises:
          UserError: more rows or columns of queries than of keys.
        """
        del regions
        (height, width), (rows, columns) = q.shape[1:3], k.shape[1:3]
        if height > rows or width > columns:
            raise UserError(
                "core 'query_relative_softmax' has a vector by offset and needs a map "
                f"of keys that holds the queries, {height}x{width}, got "
                f"{rows}x{columns}"
            )
        heads = at_least_float32(split_heads(q, self.num_heads))
        init = nn.initializers.truncated_normal(heads.shape[-1] ** -0.5)

        def scores(name, count, size, subscripts):
            """[B, heads, H, W, size], of the offsets along one side."""
            shape, what = (2 * size - 1, heads.shape[-1]), "table of offsets"
            table = sized_table(self, name, shape, init, what, self.param_dtype)
            places = size - 1 - np.arange(count)[:, None] + np.arange(size)
            vectors = table.astype(heads.dtype)[places]
            return jnp.einsum(subscripts, heads, vectors)

        by_row = scores("height", height, rows, "byxhk,yvk->bhyxv")[..., None]
        by_column = scores("width", width, columns, "byxhk,xuk->bhyxu")[..., None, :]
        shape = (q.shape[0], self.num_heads, height * width, rows * columns)
        bias = (by_row + by_column).reshape(shape)
        return softmax_over_maps(q, k, v, self.num_heads, bias=bias, mask=mask)
