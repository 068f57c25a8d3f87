"""The mixer of TransNormerLLM: linear attention that forgets at fixed rates."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense, SplitDense
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops import decay
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.relative_bias import slopes_of_layer
from normjax.mixers.ops.rotary import linearized
from normjax.mixers.steps import dense_of, normalized_heads, rows_of


@MIXERS.register("transnormer", "seq", "grid", "causal", "decode", "mask")
class TransNormerAttention(Mixer):
    """The mixer of TransNormerLLM (Qin et al., 2023). Causal.

        q, k = silu(W x)     o_i = sum_{j <= i} exp(-s (i - j)) (q_i . k_j) v_j
        y = proj(u * o / sqrt(mean(o**2) + epsilon)),   v, u = W x

    per head, without scale, denominator or bias; the mean runs over all heads. Slopes
    as of `lightning`. In the first layer queries and keys carry their position
    (LRPE: [x cos(n theta), x sin(n theta)] with learned theta). O(L (C + V) D)
    multiply-adds in blocks of C = 64; sums in at least float32.

    Attributes:
      layer, num_layers: number of the layer, from 0, and how many there are.
      lrpe: whether queries and keys carry their position; None: in layer 0.
      epsilon: added to the mean square.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.TransNormerAttention(num_heads=2, layer=0, num_layers=4)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['proj', 'qkvu', 'theta']
    """

    layer: int = 0
    num_layers: int = 1
    lrpe: bool | None = None
    epsilon: float = 1e-6

    reads: ClassVar[tuple[str, ...]] = ("qkvu",)

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
        *qkv, u = SplitDense(4, width, name="qkvu", **dense)(rows)
        q, k, v = (split_heads(t, self.num_heads) for t in qkv)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        q, k = jax.nn.silu(q), jax.nn.silu(k)
        if self.layer == 0 if self.lrpe is None else self.lrpe:
            places = jnp.arange(rows.shape[1])[None] if positions is None else positions
            shape = self.num_heads, q.shape[-1]
            theta = self.param("theta", _theta, shape, self.param_dtype)
            q, k = linearized(q, places, theta), linearized(k, places, theta)
        slopes = slopes_of_layer(self.num_heads, self.layer, self.num_layers)
        forgets = -jnp.asarray(slopes)
        forgets = decay.within_documents(forgets, rows.shape[:2], mask, positions)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        o = merge_heads(cache.recur(self, q, k, v, forgets, decode=decode))
        norm = nn.RMSNorm(self.epsilon, use_scale=False, name="norm")
        o = (norm(o) * at_least_float32(u)).astype(v.dtype)
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)


def _theta(key, shape, dtype):
    """10000**(-2 t / (H K)) at the flat index t."""
    del key
    size = shape[0] * shape[1]
    return (10000.0 ** (-2 * jnp.arange(size) / size)).reshape(shape).astype(dtype)
