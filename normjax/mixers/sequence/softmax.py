"""Softmax attention, alone and with a factor or bias by the distance of the tokens."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.core.registry import Part, Spec
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, RELATIVE_BIASES, Mixer
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import (
    asking,
    attend,
    check_order,
    dense_of,
    normalized_heads,
    project,
    rows_of,
)


@MIXERS.register("softmax", "seq", "grid", "causal", "decode", "memory", "mask")
class SoftmaxAttention(Mixer):
    """softmax(s q k^T) v per head, then a projection (Vaswani et al., 2017).

    O(L**2 D) multiply-adds. Softmax in float32.

    Attributes:
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      scale: s of the scores; None for 1 / sqrt(K).
      qkv_bias: bias of the joint query-key-value projection.
      value_bias: False: values come from a layer `v` of their own, without bias, and
        queries and keys from `qk`; not beside a memory.
      proj_bias: bias of the output projection.
      relative_bias: what the distance of tokens does to their scores: a key of
        `mixers.RELATIVE_BIASES` ("alibi", "kerple_log", ...), a dict with `name` and
        arguments, or a factory; None for nothing.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import mixers
      >>> mixer = mixers.SoftmaxAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> mask = jnp.array([[True] * 6, [True] * 4 + [False] * 2])  # padding behind
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x, mask=mask)
      >>> y.shape, variables["params"]["qkv"]["kernel"].shape
      ((2, 6, 8), (8, 24))
    """

    causal: bool = False
    rotary_base: float | None = None
    scale: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    value_bias: bool = True
    relative_bias: Spec | None = None

    cross_reads: ClassVar[tuple[str, ...]] = ("q",)
    memory_reads: ClassVar[tuple[str, ...]] = ("kv",)
    parts: ClassVar[Mapping[str, Part]] = {
        "relative_bias": Part(RELATIVE_BIASES, given=frozenset({"num_heads"})),
    }
    renamed: ClassVar[Mapping[str, str]] = {"distance": "relative_bias"}

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The linear layers that read the input."""
        return ("qkv",) if self.value_bias else ("qk", "v")

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
          UserError: `memory` with `causal`, `rotary_base`, `relative_bias`, `positions`
            or without `value_bias`; `decode` without `causal` or with `positions`.
        """
        check_order(self, memory, positions, decode)
        if memory is not None and self.relative_bias is not None:
            raise UserError(
                "cross-attention knows no relative_bias: tokens of two sequences have "
                "no distance from each other"
            )
        rows, mask = rows_of(x, mask, memory)
        q, k, v = (
            split_heads(t, self.num_heads) for t in self._projected(rows, memory)
        )
        asked = asking(rows, memory, mask, query_mask)
        q, k = normalized_heads(self, q, k, mask=mask, query_mask=asked, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        gain, bias = self._relative(q, k, positions if decode else None)
        seen = {**seen, "bias": bias, "gain": gain, "scale": self.scale}
        o = merge_heads(attend(self, q, k, v, **seen))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    def _projected(self, rows: jax.Array, memory: jax.Array | None):
        """Queries, keys and values, heads side by side."""
        if self.value_bias:
            return project(self, rows, memory)
        if memory is not None:
            raise UserError("value_bias=False is for tokens that attend to each other")
        width, dense = self.qkv_features or rows.shape[-1], dense_of(self)
        joint = {"use_bias": self.qkv_bias, **dense}
        q, k = SplitDense(2, width, name="qk", **joint)(rows)
        return q, k, Dense(width, use_bias=False, name="v", **dense)(rows)

    def _relative(self, q: jax.Array, k: jax.Array, positions: jax.Array | None):
        """(gain, bias) of the scores, see `mixers.relative_bias`."""
        if self.relative_bias is None:
            return None, None
        own = {"num_heads": self.num_heads, "param_dtype": self.param_dtype}
        make = RELATIVE_BIASES.factory(self.relative_bias, **own)
        # Checkpoints know its parameters by this name.
        return make(name="distance")(q.shape[1], k.shape[1], positions)
