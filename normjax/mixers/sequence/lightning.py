"""Linear attention whose heads forget at fixed rates: Lightning Attention."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.dense import Dense, SplitDense
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops import decay
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.relative_bias import slopes_of_layer
from normjax.mixers.steps import dense_of, normalized_heads, rows_of


@MIXERS.register("lightning", "seq", "grid", "causal", "decode", "mask")
class LightningAttention(Mixer):
    """Lightning Attention (Qin et al., 2024). Causal.

        q, k, v = silu(W x)
        o_i = sum_{j <= i} exp(-s (i - j)) (q_i . k_j) v_j
        y = proj(sigmoid(W2 W1 x) * LayerNorm(o))

    per head, without scale, denominator or bias; LayerNorm over all heads. The slope s
    is 2**(-8 h / H) for head h = 1..H (ALiBi), times 1 - layer / (num_layers - 1) +
    1e-5. O(L (C + V) D) multiply-adds in blocks of C = 64; sums in at least float32.

    Attributes:
      layer, num_layers: number of the layer, from 0, and how many there are.
      epsilon: of the LayerNorm.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.LightningAttention(num_heads=2, layer=0, num_layers=4)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['gate_down', 'gate_up', 'norm', 'proj', 'qkv']
    """

    layer: int = 0
    num_layers: int = 1
    epsilon: float = 1e-5

    reads: ClassVar[tuple[str, ...]] = ("qkv", "gate_down")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """x: [B, L, D] or [B, H, W, D] -> same. The rest: see `mixers.sequence`.

        Raises:
          UserError: `decode` with `positions`.
        """
        rows, mask = rows_of(x, mask)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        width = self.qkv_features or x.shape[-1]
        dense = {"use_bias": False, **dense_of(self)}
        qkv = SplitDense(3, width, name="qkv", **dense)(rows)
        q, k, v = (split_heads(t, self.num_heads) for t in qkv)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        q, k, v = (jax.nn.silu(t) for t in (q, k, v))
        slopes = slopes_of_layer(self.num_heads, self.layer, self.num_layers)
        forgets = -jnp.asarray(slopes.astype(np.float32))  # as released
        forgets = decay.within_documents(forgets, rows.shape[:2], mask, positions)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        o = merge_heads(cache.recur(self, q, k, v, forgets, decode=decode))
        norm = {"use_fast_variance": False, "param_dtype": self.param_dtype}
        o = nn.LayerNorm(self.epsilon, name="norm", **norm)(o)
        gate = Dense(width // self.num_heads, name="gate_down", **dense)(rows)
        gate = Dense(width, name="gate_up", **dense)(gate)
        o = (o * jax.nn.sigmoid(at_least_float32(gate))).astype(v.dtype)
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)
