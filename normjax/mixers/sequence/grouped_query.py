"""Softmax attention of groups of heads that share their keys and values."""

from typing import ClassVar

import flax.linen as nn
import jax

from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import (
    attend,
    check_order,
    dense_of,
    normalized_heads,
    rows_of,
)


@MIXERS.register("grouped_query", "seq", "grid", "causal", "decode", "mask")
class GroupedQueryAttention(Mixer):
    """softmax(q k^T / sqrt(K)) v with a key and a value for every group of heads.

    Ainslie et al., 2023; one group is multi-query attention (Shazeer, 2019). Heads
    g H / G to (g + 1) H / G - 1 meet key and value g of G = `num_kv_heads`, so that the
    cache of generation holds G / H of that of `softmax`. O(L**2 D) multiply-adds;
    softmax in float32.

    Attributes:
      num_kv_heads: heads of keys and values, a divisor of `num_heads`.
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the projections to queries, keys and values.
      proj_bias: bias of the output projection.
      num_heads: heads of the queries; each has K = D / num_heads channels.
      qkv_features: width D of the queries; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.GroupedQueryAttention(num_heads=4, num_kv_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["kv"]["kernel"].shape  # 2 (keys, values) x 2 x 2
      ((2, 6, 8), (8, 8))
    """

    num_kv_heads: int = 1
    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True

    reads: ClassVar[tuple[str, ...]] = ("q", "kv")

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
          UserError: heads that do not make groups; `decode` without `causal` or with
            `positions`.
        """
        check_order(self, None, positions, decode)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{self.num_heads} heads do not make {self.num_kv_heads} groups: "
                "num_kv_heads must divide num_heads"
            )
        rows, mask = rows_of(x, mask)
        width, dense = self.qkv_features or x.shape[-1], dense_of(self)
        joint = {"use_bias": self.qkv_bias, **dense}
        q = split_heads(Dense(width, name="q", **joint)(rows), self.num_heads)
        shared = self.num_kv_heads * q.shape[-1]
        pair = SplitDense(2, shared, name="kv", **joint)(rows)
        k, v = (split_heads(t, self.num_kv_heads) for t in pair)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        o = merge_heads(attend(self, q, k, v, **seen))
        proj = Dense(x.shape[-1], name="proj", use_bias=self.proj_bias, **dense)
        return proj(o).reshape(x.shape)
