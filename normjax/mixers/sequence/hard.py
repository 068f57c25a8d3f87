"""Attention to the keys with the largest weights."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.attend import hard_attention
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import (
    check_order,
    dense_of,
    normalized_heads,
    project,
    rows_of,
)


@MIXERS.register("hard", "seq", "grid", "causal", "decode", "mask")
class HardAttention(Mixer):
    """Softmax attention that keeps the largest weights of a query (AxFormer).

        o = top_k(softmax(q k^T / sqrt(K))) v        y = proj(o)

    with the other weights 0 and those kept as they are: they do not sum to 1
    (Nagarajan et al., 2022). With at most `keep` keys it is `softmax`, whose layers it
    has. O(L**2 D) multiply-adds and a sort of L weights a query; softmax in float32.

    Attributes:
      keep: weights of a query that count; more where several equal the smallest.
      pruned_heads: numbers of heads that give 0.
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.HardAttention(num_heads=2, keep=3)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> softmax = mixers.SoftmaxAttention(num_heads=2).apply(variables, x)
      >>> everything = mixer.clone(keep=6).apply(variables, x)
      >>> y.shape, bool(abs(everything - softmax).max() < 1e-6)
      ((2, 6, 8), True)
    """

    keep: int = 30
    pruned_heads: tuple[int, ...] = ()
    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True

    ranges: ClassVar[Mapping[str, Range]] = {"keep": POSITIVE}

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
          UserError: a pruned head that is none; `decode` without `causal` or with
            `positions`.
        """
        check_order(self, None, positions, decode)
        rows, mask = rows_of(x, mask)
        q, k, v = (split_heads(t, self.num_heads) for t in project(self, rows))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        o = hard_attention(q, k, v, self.keep, **seen)
        o = merge_heads(o * self._present().astype(o.dtype))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    @nn.nowrap
    def _present(self) -> np.ndarray:
        """[1, 1, H, 1], 0 for heads that are pruned."""
        for head in self.pruned_heads:
            if not 0 <= head < self.num_heads:
                raise UserError(f"pruned_heads: {head} is none of {self.num_heads}")
        heads = np.arange(self.num_heads)
        return ~np.isin(heads, self.pruned_heads)[None, None, :, None]
