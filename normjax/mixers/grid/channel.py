"""Attention between channels (DaViT)."""

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.channel import channel_attention
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.steps import dense_of, normalized_heads, project, rows_of


@MIXERS.register("channel", "seq", "grid", "mask")
class ChannelAttention(Mixer):
    """Attention between the channels of a head (DaViT; Ding et al., 2022).

        A = softmax(k^T v / sqrt(K)), over the channels of v        o = A q

    per head, then a projection: every position is mixed by what all positions say of
    the channels. Keys and values make the map and the queries are what it mixes, as
    released; the paper has softmax(q^T k) v. O(L K D) multiply-adds; softmax and sums
    in at least float32. DaViT alternates it with windows: `mixer=[window, channel]`.

    Attributes:
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.ChannelAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 4, 4, 8), ['proj', 'qkv'])
    """

    qkv_bias: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, L, D] or [B, H, W, C] -> same.

        Args:
          mask: bool over the positions; False is padding, which leaves no trace.
          train: passed to `qk_norm`.

        Raises:
          UserError: D does not split into heads.
        """
        rows, mask = rows_of(x, mask)
        q, k, v = (split_heads(t, self.num_heads) for t in project(self, rows))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        o = channel_attention(q, only_tokens(k, mask), only_tokens(v, mask))
        o = merge_heads(o).astype(q.dtype)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o).reshape(x.shape)
