"""Attention to the map and to tokens of earlier blocks (FcaFormer)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.core.folding import FoldSite
from normjax.core.registry import NORMS, Part, with_defaults
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.grid.spatial_reduction import ReductionNorm
from normjax.mixers.ops.heads import merge_heads, split_heads, tokens_of
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.steps import (
    attend,
    dense_of,
    normalized_heads,
    sized_table,
    types_of,
)

CROSS_TOKENS = "cross_tokens"
"""Tokens of the blocks of a stage in its carry: a tuple of [B, M, C], oldest first."""


@MIXERS.register("forward_cross", "grid", "mask")
class ForwardCrossAttention(Mixer):
    """Attention to the map and to tokens of earlier blocks (Zhang et al., 2023).

        softmax([q k^T / sqrt(K) + R, q k_s^T / sqrt(K) + b]) [v, v_s]

    per head, then a projection: R_ij = table[|yi - yj|, |xi - xj|], and k_s, v_s come
    by the same layer from norm(a s), s the tokens that the block carries of earlier
    blocks of the stage, a and b learned for each. The norm takes the factors a back,
    but for its epsilon, as released. Without tokens it is attention with the bias R.
    O(L (L + M) D) multiply-adds for M tokens. Softmax in at least float32.

    Attributes:
      max_blocks: so many of the last blocks are seen.
      token_norm: factory of the norm of the tokens; None for LayerNorm with epsilon
        1e-5.
      qkv_bias: bias of the projection of queries, keys and values.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.ForwardCrossAttention(num_heads=2)
      >>> x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))  # [B, H, W, C]
      >>> carry = {"cross_tokens": (jax.numpy.ones((1, 3, 8)),)}
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, sorted(variables["params"])
      ((1, 4, 4, 8), ['offset_bias', 'proj', 'qkv'])
      >>> variables = mixer.init(jax.random.key(1), x, carry=carry)
      >>> sorted(variables["params"])
      ['cross_bias', 'cross_norm', 'cross_scale', 'offset_bias', 'proj', 'qkv']
    """

    max_blocks: int = 12
    token_norm: Callable[..., nn.Module] | None = None
    qkv_bias: bool = True

    # One layer makes keys of the input and of the tokens.
    reads: ClassVar[tuple[str, ...]] = ()
    carries: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, Part]] = {
        "token_norm": Part(NORMS, needs=frozenset({"seq"})),
    }

    @nn.nowrap
    def fold_sites(self) -> list[FoldSite]:
        """The norm inside; paths are those in the mixer."""
        if self.token_norm is None:
            return []
        norm, obstacle = self.token_norm(parent=None), "its reader reads the map, too"
        return [FoldSite("cross_norm", norm, obstacle=obstacle)]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        carry: Mapping[str, Any] | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        """x: [B, H, W, C] -> same; (same, carry) where there is a carry.

        Args:
          carry: of the stage; its "cross_tokens" are those of the blocks before.
          mask: bool [B, H, W]; False positions give no key and no value.
          train: passed to the norms.

        Raises:
          UserError: initialised for another grid or number of tokens, or D does not
            split into heads.
        """
        width, rows = self.qkv_features or x.shape[-1], tokens_of(x)
        valid = None if mask is None else mask.reshape(rows.shape[:2])
        qkv = SplitDense(3, width, self.qkv_bias, name="qkv", **dense_of(self))
        q, k, v = qkv(rows)
        bias, seen = self._offsets(x.shape[1:3])[None], valid
        tokens = self._tokens(carry, train)
        if tokens is not None:
            _, more_k, more_v = qkv(tokens)
            k, v = (jnp.concatenate(t, 1) for t in ((k, more_k), (v, more_v)))
            count = tokens.shape[1]
            own = self._sized("cross_bias", (count, self.num_heads))
            own = jnp.broadcast_to(own.T[None, :, None], (*bias.shape[:3], count))
            bias = jnp.concatenate((bias, own), -1)
            if valid is not None:
                seen = jnp.pad(valid, ((0, 0), (0, count)), constant_values=True)
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        k, v = only_tokens(k, seen), only_tokens(v, seen)
        q, k = normalized_heads(self, q, k, mask=seen, query_mask=valid, train=train)
        visible = None if seen is None else seen[:, None, None]
        o = merge_heads(attend(self, q, k, v, bias=bias, mask=visible))
        y = Dense(x.shape[-1], name="proj", **dense_of(self))(o).reshape(x.shape)
        return y if carry is None else (y, carry)

    def _offsets(self, grid: tuple[int, ...]) -> jax.Array:
        """R [heads, L, L]."""
        y, x = (i.reshape(-1) for i in np.indices(grid))
        rows, columns = (np.abs(i[:, None] - i) for i in (y, x))
        name, what = "offset_bias", "table of offsets"
        shape, zeros = (*grid, self.num_heads), nn.initializers.zeros
        table = sized_table(self, name, shape, zeros, what, self.param_dtype)
        return jnp.moveaxis(table[rows, columns], -1, 0)

    def _tokens(self, carry: Mapping[str, Any] | None, train: bool) -> jax.Array | None:
        """norm(a s) [B, M, C] of the last blocks, None where there are none."""
        if self.max_blocks < 1:
            raise UserError(f"max_blocks {self.max_blocks}: at least 1 block is seen")
        blocks = (carry or {}).get(CROSS_TOKENS, ())[-self.max_blocks :]
        if not blocks:
            return None
        tokens = jnp.concatenate(blocks, 1)
        scale = self._sized("cross_scale", (tokens.shape[1], 1), nn.initializers.ones)
        make = ReductionNorm if self.token_norm is None else self.token_norm
        make = with_defaults(make, **types_of(self))
        return make(name="cross_norm")(
            tokens * scale.astype(tokens.dtype)[None], train=train
        )

    def _sized(
        self, name: str, shape: tuple[int, int], init: Any = nn.initializers.zeros
    ) -> jax.Array:
        """A parameter for each token."""
        return sized_table(self, name, shape, init, "table of tokens", self.param_dtype)
