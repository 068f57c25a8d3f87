"""Softmax attention with a learned bias by how far apart two positions are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.moments import at_least_float32
from normjax.mixers.base import CORES
from normjax.mixers.ops.attend import softmax_over_maps
from normjax.mixers.steps import check_same_map, sized_table


@CORES.register("absolute_offset_softmax")
class AbsoluteOffsetSoftmax(nn.Module):
    """softmax(q k^T / sqrt(K) + R) v with R_ij = table[|yi - yj|, |xi - xj|].

    A bias per head that knows distances by row and column, not directions (LeViT,
    Graham et al., 2021; TinyViT, Wu et al., 2022). It starts at 0.

    Attributes:
      num_heads: heads.
      dtype: unused: the result has the type of the queries.
      param_dtype: of the table.

    Example:
      >>> import jax
      >>> from normjax.mixers import cores
      >>> core = cores.AbsoluteOffsetSoftmax(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 3, 8))  # [B, H, W, D]
      >>> o, variables = core.init_with_output(jax.random.key(1), x, x, x)
      >>> o.shape, variables["params"]["absolute_position_bias"].shape
      ((1, 4, 3, 8), (4, 3, 2))
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
        """q, k, v: [B, H, W, D] -> as q; regions are ignored. See `mixers.cores`.

        Raises:
          UserError: keys of another map than queries: there is no offset between them.
        """
        del regions
        check_same_map("absolute_offset_softmax", q, k)
        height, width = q.shape[1:3]
        shape, init = (height, width, self.num_heads), nn.initializers.zeros
        name, what = "absolute_position_bias", "table of offsets"
        table = sized_table(self, name, shape, init, what, self.param_dtype)
        y, x = (i.reshape(-1) for i in np.indices((height, width)))
        rows, columns = (np.abs(i[:, None] - i[None]) for i in (y, x))
        bias = jnp.moveaxis(at_least_float32(table)[rows, columns], -1, 0)[None]
        return softmax_over_maps(q, k, v, self.num_heads, bias=bias, mask=mask)
