"""Cosine attention with a bias of log-spaced offsets as a core."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.mixers.base import CORES
from normjax.mixers.cosine import cosine_queries, log_spaced_bias
from normjax.mixers.ops.aggregated import unit
from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.masks import only_valid


@CORES.register("cosine")
class Cosine(nn.Module):
    """softmax((q' + e) . k' softplus(t) log(M) + R) v (TransNeXt; Shi, 2024).

    q' and k' have length 1, e and t are learned per head, M is the number of keys and R
    an MLP of the log-spaced offset of query and key (Liu et al., 2022), with `trained`
    sides as unit. Regions are ignored.

    Attributes:
      num_heads: heads.
      position_features: width of the MLP of R.
      trained_grid: rows and columns of the queries at which the weights were trained;
        None for those of the input.
      dtype: unused: the result has the type of the queries.
      param_dtype: of the parameters.

    Example:
      >>> import jax
      >>> from normjax.mixers import cores
      >>> core = cores.Cosine(num_heads=2, position_features=16)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, D]
      >>> o, variables = core.init_with_output(jax.random.key(1), x, x, x)
      >>> o.shape
      (1, 4, 4, 8)
      >>> sorted(variables["params"])
      ['position_fc1', 'position_fc2', 'query_embedding', 'temperature']
    """

    num_heads: int
    position_features: int = 512
    trained_grid: tuple[int, int] | None = None
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
        """q: [B, H, W, D], k and v: [B, H', W', D] -> as q. See `mixers.cores`."""
        del regions
        rows, columns = k.shape[1:3]
        count, visible = rows * columns, None
        if mask is not None:
            visible = mask.reshape(len(mask), 1, 1, -1)
            count = jnp.sum(visible, -1, keepdims=True)
        queries, keys = (q.shape[1], q.shape[2]), (rows, columns)
        k, v = only_valid(k, mask), only_valid(v, mask)
        heads = (split_heads(tokens_of(t), self.num_heads) for t in (q, k, v))
        query, key, value = heads
        _, asked = cosine_queries(self, query, count)
        bias = log_spaced_bias(self, queries, keys, asked.dtype)[None]
        o = softmax_attention(
            asked.astype(q.dtype),
            unit(key).astype(q.dtype),
            value,
            bias=bias,
            mask=visible,
            scale=1.0,
        )
        return merge_heads(o).reshape(q.shape)
