"""Mixture-of-Head attention: heads as experts."""

from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.head_gates import gate_names, head_gates
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


@MIXERS.register("mixture_of_head", "seq", "grid", "causal", "decode", "memory", "mask")
class MixtureOfHeadAttention(Mixer):
    """Softmax attention whose heads are weighed per token (MoH; Jin et al., 2024).

    The first S heads are shared, the other R are routed, of which the k most probable
    count:

        p = softmax(W_r x)            g_r = k p / sum of the k largest p, 0 for the rest
        g_s = S softmax(W_s x)        (b_s, b_r) = 2 softmax(W_b x)
        o = proj([b_s g_s, b_r g_r] * heads)

    Without shared or without routed heads there is no balance b. All heads are
    computed: O(L**2 D) multiply-adds. In training the load-balancing term

        R^2 mean_h(mean_t(p_th) * mean_t(1 if h counts for t))

    is sown into the collection `losses` (weight in the paper: 0.01; see
    `auxiliary_loss_weight` of the train config). Gates in at least float32.

    Attributes:
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
      shared_heads: S.
      active_heads: k; None for half of the routed heads, rounded up.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.MixtureOfHeadAttention(num_heads=4, active_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x, train=True)
      >>> y.shape, sorted(variables["params"]), sorted(variables["losses"])
      ((2, 6, 8), ['proj', 'qkv', 'routed_gate'], ['load'])
    """

    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    shared_heads: int = 0
    active_heads: int | None = None

    memory_reads: ClassVar[tuple[str, ...]] = ("kv",)

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The linear layers that read the input."""
        return ("qkv", *gate_names(self))

    @property
    def cross_reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same beside a memory."""
        return ("q", *gate_names(self))

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
            without `causal` or with `positions`; numbers of heads that do not fit.
        """
        check_order(self, memory, positions, decode)
        rows, mask = rows_of(x, mask, memory)
        q, k, v = (split_heads(t, self.num_heads) for t in project(self, rows, memory))
        asked = asking(rows, memory, mask, query_mask)
        q, k = normalized_heads(self, q, k, mask=mask, query_mask=asked, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        o = attend(self, q, k, v, **seen)
        gates = head_gates(self, rows, asked, train)
        o = merge_heads(o * gates[..., None].astype(o.dtype))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)
