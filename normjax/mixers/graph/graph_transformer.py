"""Attention along the edges of a graph."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense, SplitDense
from normjax.core.ranges import COUNT, Range
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.graph import all_pairs, graph_attention
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.steps import dense_of, normalized_heads, rows_of


@MIXERS.register("graph_transformer", "seq", "grid", "mask")
class GraphTransformerAttention(Mixer):
    """Attention along the edges of a graph (Dwivedi and Bresson, 2020).

    Over the edges j -> i of each node i, per head,

        w_ij = exp(clip(q_i . k_j / sqrt(K), -5, 5))
        y_i = proj(sum_j w_ij v_j / (sum_j w_ij + epsilon))

    With features of the edges, s_ij = q_i k_j W_e e_ij / sqrt(K) elementwise, w_ij is
    that of its sum, and edges become `edge_proj(s)`. Projections of queries, keys,
    values and edges have no bias. A node without incoming edge gets 0 before `proj`
    (released: NaN). O(N**2 D) multiply-adds, N**2 D numbers with edges; weights and
    sums in at least float32.

    Attributes:
      epsilon: added to the denominator; published: 0, with edges 1e-6.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> mixer = mixers.GraphTransformerAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 5, 8))  # [B, N, D]
      >>> ring = jnp.roll(jnp.eye(5, dtype=bool), 1, 1)[None]  # from i + 1 to i
      >>> given = {"adjacency": ring, "edges": jnp.ones((1, 5, 5, 3))}
      >>> (y, edges), _ = mixer.init_with_output(jax.random.key(1), x, **given)
      >>> y.shape, edges.shape
      ((1, 5, 8), (1, 5, 5, 3))
    """

    epsilon: float = 0.0

    ranges: ClassVar[Mapping[str, Range]] = {"epsilon": COUNT}

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        adjacency: jax.Array | None = None,
        edges: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        """x: [B, N, D] -> same, or (same, new edges); see `mixers.graph`.

        Args:
          adjacency: bool, broadcastable to [B, N, N]; None: all pairs.
          edges: [B, N, N, E]; the new ones have the same shape.
          mask: bool [B, N]; False is no node and has no edges.
          train: passed to `qk_norm`.

        Raises:
          UserError: D does not split into heads.
        """
        rows, mask = rows_of(x, mask)
        width = self.qkv_features or x.shape[-1]
        plain = {"use_bias": False, **dense_of(self)}
        qkv = SplitDense(3, width, name="qkv", **plain)(rows)
        q, k, v = (split_heads(t, self.num_heads) for t in qkv)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        q, k, v = (only_tokens(t, mask) for t in (q, k, v))
        if adjacency is None:
            adjacency = all_pairs(rows.shape[1], mask)
        elif mask is not None:
            adjacency = adjacency & mask[:, None, :] & mask[:, :, None]
        told = None
        if edges is not None:
            edges = jnp.where(adjacency[..., None], edges, 0)
            told = Dense(width, name="edges", **plain)(edges)
            told = split_heads(told, self.num_heads)
        given = {"epsilon": self.epsilon}
        o, scores = graph_attention(q, k, v, adjacency, told, **given)
        o = merge_heads(o).astype(v.dtype)
        y = Dense(x.shape[-1], name="proj", **dense_of(self))(o).reshape(x.shape)
        if edges is None or scores is None:
            return y
        scores = merge_heads(scores).astype(v.dtype)
        made = Dense(edges.shape[-1], name="edge_proj", **dense_of(self))
        return y, made(scores)
