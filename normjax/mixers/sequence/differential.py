"""Differential attention: the difference of two softmax attentions."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.attend import softmax_attention
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import (
    asking,
    check_order,
    dense_of,
    normalized_heads,
    project,
    rows_of,
)


@MIXERS.register("differential", "seq", "grid", "causal", "decode", "memory", "mask")
class DifferentialAttention(Mixer):
    """Differential attention (Ye et al., 2024).

    Each head has two queries and two keys of width K and a value of width 2 K,
    D = 2 H K, so that half the usual number of heads costs the same:

        o = (softmax(q1 k1^T / sqrt(K)) - lam softmax(q2 k2^T / sqrt(K))) v
        lam = exp(lq1 . lk1) - exp(lq2 . lk2) + lam0,  lam0 = 0.8 - 0.6 exp(-0.3 layer)
        y = proj((1 - lam0) RMSNorm(o)), the root mean square per head, epsilon 1e-5

    No projection has a bias. O(L**2 D) multiply-adds; softmax and lam in float32.

    Attributes:
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
      layer: number of the layer, from 0.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.DifferentialAttention(num_heads=2, causal=True)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['lambda_k1', 'lambda_k2', 'lambda_q1', 'lambda_q2', 'norm', 'proj', 'qkv']
    """

    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = False
    proj_bias: bool = False
    layer: int = 0

    cross_reads: ClassVar[tuple[str, ...]] = ("q",)
    memory_reads: ClassVar[tuple[str, ...]] = ("kv",)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        memory: jax.Array | None = None,
        mask: jax.Array | None = None,
        query_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """x: [B, N, D] or [B, H, W, D] -> same. The rest: see `mixers.sequence`.

        Raises:
          UserError: `memory` with `causal`, `rotary_base` or `positions`; `decode`
            without `causal` or with `positions`.
        """
        check_order(self, memory, positions, decode)
        rows, mask = rows_of(x, mask, memory)
        q, k, v = project(self, rows, memory)
        q, k = split_heads(q, 2 * self.num_heads), split_heads(k, 2 * self.num_heads)
        v = split_heads(v, self.num_heads)
        asked = asking(rows, memory, mask, query_mask)
        q, k = normalized_heads(self, q, k, mask=mask, query_mask=asked, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        first, second = (
            softmax_attention(q[:, :, i::2], k[:, :, i::2], v, **seen) for i in (0, 1)
        )
        start = 0.8 - 0.6 * math.exp(-0.3 * self.layer)
        lam = self._product("1", q.shape[-1]) - self._product("2", q.shape[-1]) + start
        o = at_least_float32(first) - lam * at_least_float32(second)
        norm = nn.RMSNorm(1e-5, param_dtype=self.param_dtype, name="norm")
        o = merge_heads(((1 - start) * norm(o)).astype(v.dtype))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    def _product(self, which: str, width: int) -> jax.Array:
        """exp(lq . lk) of one of the two maps."""
        init = nn.initializers.normal(0.1)
        lq, lk = (
            self.param(f"lambda_{name}{which}", init, (width,), self.param_dtype)
            for name in "qk"
        )
        return jnp.exp(jnp.sum(at_least_float32(lq) * at_least_float32(lk)))
