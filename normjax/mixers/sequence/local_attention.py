"""Griffin's attention to a window of the last positions."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense, SplitDense
from normjax.core.errors import UserError
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.rotary import rotate_halves
from normjax.mixers.steps import dense_of, normalized_heads, rows_of


@MIXERS.register("local_attention", "seq", "grid", "causal", "decode", "mask")
class LocalAttention(Mixer):
    """Griffin's attention to the last `window` positions and itself (De et al., 2024).

    softmax(q k^T / sqrt(K)) v with one key and value for all heads (multi-query,
    Shazeer, 2019) and rotary positions on the first half of each head. Queries, keys
    and values have no bias, the output has. O(L window D) multiply-adds; softmax in at
    least float32.

    Attributes:
      window: how far back a token sees.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.LocalAttention(num_heads=2, window=2)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> changed = jax.jit(mixer.apply)(variables, x.at[:, 0].set(0.0))
      >>> y.shape, bool(abs(y - changed)[:, 3:].max() < 1e-3)  # it is too far back
      ((2, 6, 8), True)
    """

    window: int = 1024

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
          UserError: `decode` with `positions`.
        """
        rows, mask = rows_of(x, mask)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        width = self.qkv_features or x.shape[-1]
        dense = {"use_bias": False, **dense_of(self)}
        q = split_heads(Dense(width, name="q", **dense)(rows), self.num_heads)
        size = q.shape[-1]
        if size % 4:
            raise UserError(f"heads of {size} channels: rotation needs a multiple of 4")
        k, v = (t[:, :, None] for t in SplitDense(2, size, name="kv", **dense)(rows))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        places = jnp.arange(rows.shape[1])[None] if positions is None else positions
        q, k = (_half_turned(t, places) for t in (q, k))
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        o = cache.within_window(self, q, k, v, mask, positions, decode)
        o = merge_heads(o)
        return Dense(x.shape[-1], name="proj", **dense_of(self))(o).reshape(x.shape)


def _half_turned(t: jax.Array, places: jax.Array) -> jax.Array:
    """Heads [B, L, H, K] whose first K / 2 channels turn with their position."""
    half = t.shape[-1] // 2
    return jnp.concatenate((rotate_halves(t[..., :half], places), t[..., half:]), -1)
