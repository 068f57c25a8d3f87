"""Rectified linear attention: ReLU in the place of softmax."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.attend import rectified_attention
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


@MIXERS.register("rela", "seq", "grid", "causal", "decode", "memory", "mask")
class RectifiedLinearAttention(Mixer):
    """Rectified linear attention, ReLA (Zhang, Titov and Sennrich, 2021).

        o = relu(q k^T / sqrt(K)) v per head      y = proj(RMSNorm(o))

    without any sum to divide by; a token may attend to nothing. The root mean square
    runs over all heads together, with epsilon 1e-8. O(L**2 D) multiply-adds. Weights
    and norm in at least float32.

    Attributes:
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
      epsilon: added to the mean square.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.RectifiedLinearAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> memory = jax.random.normal(jax.random.key(1), (2, 3, 8))  # cross-attention
      >>> y, variables = mixer.init_with_output(jax.random.key(2), x, memory=memory)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['kv', 'norm', 'proj', 'q']
    """

    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    epsilon: float = 1e-8

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
        told = mask, query_mask, positions, train, decode
        o, dtype = _attended(self, x, memory, *told)
        norm = nn.RMSNorm(self.epsilon, param_dtype=self.param_dtype, name="norm")
        o = norm(o).astype(dtype)
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)


@MIXERS.register("gated_rela", "seq", "grid", "causal", "decode", "memory", "mask")
class GatedRectifiedLinearAttention(Mixer):
    """ReLA whose norm is gated (Zhang, Titov and Sennrich, 2021).

        y = proj(RMSNorm(o) * sigmoid(gate * o))

    with o as in `rela` and one learned number per channel, which multiplies the o that
    is not normalised. O(L**2 D) multiply-adds. Weights, norm and gate in at least
    float32.

    Attributes:
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
      epsilon: added to the mean square.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.GatedRectifiedLinearAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape
      (2, 6, 8)
      >>> sorted(variables["params"])
      ['gate', 'norm', 'proj', 'qkv']
    """

    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    epsilon: float = 1e-8

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
        told = mask, query_mask, positions, train, decode
        o, dtype = _attended(self, x, memory, *told)
        ones = nn.initializers.ones
        gate = self.param("gate", ones, o.shape[-1:], self.param_dtype)
        gate = jax.nn.sigmoid(at_least_float32(gate).reshape(1, 1, -1) * o)
        norm = nn.RMSNorm(self.epsilon, param_dtype=self.param_dtype, name="norm")
        o = (norm(o) * gate).astype(dtype)
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)


def _attended(module: Any, x, memory, mask, query_mask, positions, train, decode):
    """o [B, N, D] before its norm, in at least float32, and the dtype of queries."""
    check_order(module, memory, positions, decode)
    rows, mask = rows_of(x, mask, memory)
    heads = module.num_heads
    q, k, v = (split_heads(t, heads) for t in project(module, rows, memory))
    asked = asking(rows, memory, mask, query_mask)
    q, k = normalized_heads(module, q, k, mask=mask, query_mask=asked, train=train)
    positions = cache.positions_of(module, rows, mask, positions, decode)
    q, k = place(q, k, positions, module.rotary_base)
    k, v, seen = cache.remember(module, k, v, positions, mask, decode)
    return merge_heads(rectified_attention(q, k, v, **seen)), q.dtype
