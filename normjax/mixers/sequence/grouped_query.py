"""Softmax attention of groups of heads that share their keys and values."""

import flax.linen as nn
import jax

from normjax.core.dense import Dense
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.heads import merge_heads
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import (
    attend,
    check_order,
    dense_of,
    normalized_heads,
    project_groups,
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
      joint: one layer `qkv` for queries, keys and values, in this order, instead of `q`
        and `kv` (OpenELM).
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
    joint: bool = False

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The linear layers that read the input."""
        return ("qkv",) if self.joint else ("q", "kv")

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
        rows, mask = rows_of(x, mask)
        q, k, v = project_groups(self, rows)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        o = merge_heads(attend(self, q, k, v, **seen))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)
