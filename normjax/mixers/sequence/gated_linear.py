"""Gated linear attention of sequences."""

from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Initializer

from normjax.core.dense import Dense, SplitDense
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops import decay
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.steps import (
    LogDecay,
    dense_of,
    normalized_heads,
    rows_of,
    xavier,
)


@MIXERS.register("gated_linear", "seq", "grid", "causal", "decode", "mask")
class GatedLinearAttention(Mixer):
    """Gated linear attention, GLA (Yang et al., 2024). Causal.

        S_t = diag(d_t) S_{t-1} + k_t v_t^T     o_t = S_t^T q_t / sqrt(K)
        y = proj(RMSNorm(o) * silu(W_g x))      d = sigmoid(W2 W1 x + b)**(1 / 16)

    with one state per head, the root mean square per head (epsilon 1e-5) and no bias
    but b. O(L (C + V) D) multiply-adds in blocks of C = 64; states and decays in at
    least float32.

    Attributes:
      expand_k, expand_v: widths of the keys and values as parts of D.
      gate_rank: channels between W1 and W2.
      epsilon: of the norm.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.GatedLinearAttention(num_heads=2, gate_rank=4)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['log_decay', 'norm', 'proj', 'qk', 'vg']
    """

    num_heads: int = 4
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_rank: int = 16
    epsilon: float = 1e-5
    kernel_init: Initializer = xavier

    reads: ClassVar[tuple[str, ...]] = ("qk", "vg", "log_decay/down")

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
        keys, values = round(width * self.expand_k), round(width * self.expand_v)
        dense, heads = {"use_bias": False, **dense_of(self)}, self.num_heads
        q, k = SplitDense(2, keys, name="qk", **dense)(rows)
        q, k = split_heads(q, heads), split_heads(k, heads)
        v, gate = SplitDense(2, values, name="vg", **dense)(rows)
        v, gate = split_heads(v, heads), split_heads(gate, heads)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        make = LogDecay(keys, self.gate_rank, name="log_decay", **dense_of(self))
        forgets = split_heads(make(rows), heads)
        forgets = decay.within_documents(forgets, rows.shape[:2], mask, positions)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        q = q * q.shape[-1] ** -0.5
        o = cache.recur(self, q, k, v, forgets, decode=decode)
        norm = nn.RMSNorm(self.epsilon, param_dtype=self.param_dtype, name="norm")
        o = (norm(o) * jax.nn.silu(at_least_float32(gate))).astype(v.dtype)
        o = merge_heads(o)
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)
