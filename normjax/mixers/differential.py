"""Differential attention: the difference of two softmax attentions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.moments import at_least_float32
from normjax.mixers.base import MIXERS, softmax_attention, split_heads
from normjax.mixers.sequence import LinearlyProjected


@MIXERS.register("differential", "seq", "grid", "causal", "decode", "memory", "mask")
class DifferentialAttention(LinearlyProjected):
    """Differential attention (Ye et al., 2024).

    Each head has two queries and two keys of width K and a value of width 2 K,
    D = 2 H K, so that half the usual number of heads costs the same:

        o = (softmax(q1 k1^T / sqrt(K)) - lam softmax(q2 k2^T / sqrt(K))) v
        lam = exp(lq1 . lk1) - exp(lq2 . lk2) + lam0,  lam0 = 0.8 - 0.6 exp(-0.3 layer)
        y = proj((1 - lam0) RMSNorm(o)), the root mean square per head, epsilon 1e-5

    No projection has a bias. O(L**2 D) multiply-adds; softmax and lam in float32.

    Attributes: those of LinearlyProjected and
      layer: number of the layer, from 0.
    """

    qkv_bias: bool = False
    proj_bias: bool = False
    layer: int = 0

    @nn.nowrap
    def _split(self, *parts: jax.Array) -> tuple[jax.Array, ...]:
        q, k, v = parts
        pairs = 2 * self.num_heads
        return (
            split_heads(q, pairs),
            split_heads(k, pairs),
            split_heads(v, self.num_heads),
        )

    def _attend(self, q, k, v, context):
        seen = {"mask": context.visible, "causal": context.causal}
        first, second = (
            softmax_attention(q[:, :, i::2], k[:, :, i::2], v, **seen) for i in (0, 1)
        )
        start = 0.8 - 0.6 * math.exp(-0.3 * self.layer)
        lam = self._product("1", q.shape[-1]) - self._product("2", q.shape[-1]) + start
        o = at_least_float32(first) - lam * at_least_float32(second)
        norm = nn.RMSNorm(1e-5, param_dtype=self.param_dtype, name="norm")
        return ((1 - start) * norm(o)).astype(v.dtype)

    def _product(self, which: str, width: int) -> jax.Array:
        """exp(lq . lk) of one of the two maps."""
        init = nn.initializers.normal(0.1)
        lq, lk = (
            self.param(f"lambda_{name}{which}", init, (width,), self.param_dtype)
            for name in "qk"
        )
        return jnp.exp(jnp.sum(at_least_float32(lq) * at_least_float32(lk)))
