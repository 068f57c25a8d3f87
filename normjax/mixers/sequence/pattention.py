"""Token-parameter attention: linear layers as attention to learned tokens."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.dense import Dense
from normjax.core.errors import UserError, one_of
from normjax.core.gelu import gelu
from normjax.core.moments import at_least_float32
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import (
    asking,
    attend,
    check_order,
    normalized_heads,
    rows_of,
    types_of,
)


def _l2_norm_gelu(s):
    return gelu(_unit_mean_square(s))


def _gelu_l2_norm(s):
    return _unit_mean_square(gelu(s))


def _softmax(s):
    return s.shape[-1] * jax.nn.softmax(s)


def _unit_mean_square(s: jax.Array) -> jax.Array:
    """s sqrt(M) / |s| over the last axis of length M; 0 for 0."""
    total = jnp.sum(s * s, -1, keepdims=True)
    return s * jnp.sqrt(s.shape[-1] / jnp.where(total > 0, total, 1))


SCORES = {
    "l2_norm_gelu": _l2_norm_gelu,
    "gelu_l2_norm": _gelu_l2_norm,
    "softmax": _softmax,
}
"""What becomes of the M scores of a token, by name."""


class Pattention(nn.Module):
    """Token-parameter attention (TokenFormer; Wang et al., 2024).

    y = Theta(x K^T) V with M learned tokens K [M, C] and V [M, features]. Theta is one
    of SCORES: the exact GELU of scores of mean square 1 (published), the same the other
    way round, or M softmax. Scores in at least float32. More tokens can be added to a
    trained layer without changing it only if Theta keeps its scale.

    Attributes:
      features: width of y.  num_tokens: M.
      scores: name of Theta.
      dtype: of the result; None infers it.  param_dtype: of the parameters.
      key_init, value_init: of K and V.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> layer = mixers.Pattention(features=3, num_tokens=16)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))
      >>> y, variables = layer.init_with_output(jax.random.key(1), x)
      >>> y.shape, jax.tree.map(jax.numpy.shape, variables["params"])
      ((2, 6, 3), {'key': {'kernel': (8, 16)}, 'value': {'kernel': (16, 3)}})
    """

    features: int
    num_tokens: int
    scores: str = "l2_norm_gelu"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    key_init: Initializer = nn.initializers.normal(0.02)
    value_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features].

        Raises:
          UserError: unknown `scores`.
        """
        if self.scores not in SCORES:
            raise UserError(one_of("scores", self.scores, SCORES))
        dense = {"use_bias": False, **types_of(self)}
        keys = Dense(self.num_tokens, kernel_init=self.key_init, name="key", **dense)
        s = keys(x)
        s = SCORES[self.scores](at_least_float32(s)).astype(s.dtype)
        init = {"kernel_init": self.value_init, **dense}
        return Dense(self.features, name="value", **init)(s)


@MIXERS.register("pattention", "seq", "grid", "causal", "decode", "memory", "mask")
class PattentionMixer(Mixer):
    """Softmax attention whose four projections are Pattention (Wang et al., 2024).

    O(L**2 D + L M D) multiply-adds for M learned tokens. Without bias.

    Attributes:
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      num_tokens: M of each projection; None for the width D of queries, keys and
        values.
      scores: what becomes of the scores, one of SCORES.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype: of the parameters.
      kernel_init: unused: learned tokens have their own.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.PattentionMixer(num_heads=2, num_tokens=16)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> y, variables = jax.eval_shape(mixer.init_with_output, jax.random.key(1), x)
      >>> y.shape, variables["params"]["q"]["key"]["kernel"].shape
      ((2, 6, 8), (8, 16))
    """

    causal: bool = False
    rotary_base: float | None = None
    num_tokens: int | None = None
    scores: str = "l2_norm_gelu"

    reads: ClassVar[tuple[str, ...]] = ("q/key", "k/key", "v/key")
    writes: ClassVar[str | None] = "proj/value"
    cross_reads: ClassVar[tuple[str, ...]] = ("q/key",)
    memory_reads: ClassVar[tuple[str, ...]] = ("k/key", "v/key")

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
        width = self.qkv_features or x.shape[-1]
        others = rows if memory is None else memory
        sources = {"q": rows, "k": others, "v": others}
        q, k, v = (self._layer(width, width, n)(t) for n, t in sources.items())
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        asked = asking(rows, memory, mask, query_mask)
        q, k = normalized_heads(self, q, k, mask=mask, query_mask=asked, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k = place(q, k, positions, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        o = merge_heads(attend(self, q, k, v, **seen))
        return self._layer(x.shape[-1], o.shape[-1], "proj")(o).reshape(x.shape)

    def _layer(self, features: int, width: int, name: str) -> Pattention:
        tokens = self.num_tokens or width
        return Pattention(features, tokens, self.scores, name=name, **types_of(self))
