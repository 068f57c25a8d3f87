"""What the mixers of token sequences share: documents, heads, projections."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from normjax.core.collections import DETAILS
from normjax.core.dense import Dense, SplitDense, trunc_normal
from normjax.core.errors import UserError
from normjax.core.moments import align_mask
from normjax.core.registry import Part
from normjax.mixers import cache, decay
from normjax.mixers.base import (
    QK_NORM,
    attention_entropy,
    merge_heads,
    normalized_heads,
    softmax_attention,
    split_heads,
    tokens_of,
)
from normjax.mixers.rotary import rotate_halves


def documents_of(positions: jax.Array) -> jax.Array:
    """[B, L] positions, 0 where a document starts -> [B, L] number of the document."""
    return jnp.cumsum(positions == 0, axis=1)


def visible_keys(
    mask: jax.Array | None, positions: jax.Array | None
) -> jax.Array | None:
    """Which key a query may see: bool, broadcastable to [B, 1, N, M]; None: every one.

    Args:
      mask: bool [B, M]; False is padding.
      positions: [B, L] of packed documents, which do not see each other.
    """
    visible = None if mask is None else mask[:, None, None, :]
    if positions is None:
        return visible
    document = documents_of(positions)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same if visible is None else same & visible


def only_tokens(t: jax.Array, mask: jax.Array | None) -> jax.Array:
    """t [B, L, ...] with 0 at padding, for 0 times NaN of padding is NaN."""
    return t if mask is None else jnp.where(align_mask(mask, t), t, 0)


class SequenceMixer(nn.Module):
    """What the mixers of sequences have in common.

    Attributes:
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.
    """

    num_heads: int
    qkv_features: int | None = None
    qk_norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    reads: ClassVar[tuple[str, ...]] = ("qkv",)
    writes: ClassVar[str | None] = "proj"
    proj_bias: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, Part]] = {"qk_norm": QK_NORM}

    @nn.nowrap
    def inner_widths(self, dim: int) -> dict[str, int]:
        """Arguments that keep the inside at width `dim` when the tokens get another."""
        return {"qkv_features": self.qkv_features or dim}

    @nn.nowrap
    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def _dense(self) -> dict[str, Any]:
        return {"kernel_init": self.kernel_init, **self._types()}

    @nn.nowrap
    def _width(self, x: jax.Array) -> int:
        return self.qkv_features or x.shape[-1]

    @nn.nowrap
    def _split(self, *parts: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(split_heads(t, self.num_heads) for t in parts)

    def _finish(self, o: jax.Array, features: int) -> jax.Array:
        """[B, L, D] or heads [B, L, H, K] -> [B, L, features]."""
        o, bias = merge_heads(o) if o.ndim == 4 else o, self.proj_bias
        return Dense(features, use_bias=bias, name="proj", **self._dense())(o)


class Context(NamedTuple):
    """What an attention needs to know beyond queries, keys and values.

    Attributes:
      x: the tokens that ask, [B, N, D].
      mask: bool [B, N], False at their padding, or None.
      visible: which key a query may see, of `visible_keys`; knows nothing of `causal`.
      causal: query i sees the keys up to i.
      positions: int [B, N], of queries whose keys are at 0 to M - 1; None: queries are
        at the places of the keys.
      train: whether the model trains.
    """

    x: jax.Array
    mask: jax.Array | None
    visible: jax.Array | None
    causal: bool
    positions: jax.Array | None
    train: bool


class PairwiseMixer(SequenceMixer):
    """Base of mixers in which every token weighs every other: O(L**2 D).

    A subclass has `_attend(q, k, v, context)` on heads [B, L, H, K].

    Attributes: those of SequenceMixer and
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`rotary.rotate_halves`) with
        frequencies down to 1 / rotary_base; None: they do not.
    """

    causal: bool = False
    rotary_base: float | None = None

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
        """x: [B, N, D] or [B, H, W, D] -> same.

        Args:
          memory: [B, M, E], what keys and values are made of (cross-attention); None:
            x. Queries then have a projection of their own beside that of the others.
          mask: bool over the keys, [B, M], [B, N] or [B, H, W]; False is padding, which
            no token sees.
          query_mask: bool [B, N], the same of x beside a `memory`, for statistics.
          positions: int [B, N], the position of each token in its document; 0 starts
            a document, and documents do not see each other. None: one document a row.
          train: passed to `qk_norm`.
          decode: the tokens continue those of the calls before, see `mixers.cache`,
            which holds keys and values of all positions.

        Raises:
          UserError: `memory` with `causal`, `rotary_base` or `positions`, which speak
            of one sequence; `decode` without `causal` or with `positions`.
        """
        ordered = self.causal or self.rotary_base is not None or positions is not None
        if memory is not None and ordered:
            raise UserError("cross-attention knows neither order nor packed documents")
        if decode and not self.causal:
            raise UserError("decode=True needs a mixer with causal=True")
        shape, x = x.shape, tokens_of(x)
        mask = None if mask is None else mask.reshape(len(x), -1)
        heads = self._project(x) if memory is None else self._project2(x, memory)
        q, k, v = heads
        if memory is not None and query_mask is None:
            query_mask = jnp.ones(x.shape[:2], bool)
        asking = mask if memory is None else query_mask
        q, k = normalized_heads(self, q, k, mask=mask, query_mask=asking, train=train)
        grown = None
        if decode:
            grown = cache.next_positions(self, x.shape[:2], mask, positions)
            positions = grown
        if self.rotary_base is not None:
            places = jnp.arange(x.shape[1])[None] if positions is None else positions
            q, k = (rotate_halves(t, places, self.rotary_base) for t in (q, k))
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        if grown is None:
            visible = visible_keys(mask, positions)
            context = Context(x, asking, visible, self.causal, None, train)
        else:
            k = cache.by_position(self, "key", k, grown, mask)
            v = cache.by_position(self, "value", v, grown, mask)
            visible = cache.earlier(grown, k.shape[1])
            context = Context(x, asking, visible, False, grown, train)
        o = self._attend(q, k, v, context)
        return self._finish(o, shape[-1]).reshape(shape)

    def _project(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Heads of queries, keys and values."""
        raise NotImplementedError

    def _project2(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, ...]:
        """The same with keys and values of other tokens."""
        raise NotImplementedError

    def _attend(self, q, k, v, context: Context) -> jax.Array:
        raise NotImplementedError

    def _softmax(self, q, k, v, context: Context, bias=None, gain=None) -> jax.Array:
        """`softmax_attention` on heads; its entropy for those who ask for details."""
        seen = {"mask": context.visible, "causal": context.causal}
        if self.is_mutable_collection(DETAILS) and not self.is_initializing():
            entropy = attention_entropy(q, k, bias=bias, gain=gain, **seen)
            self.sow(DETAILS, "attention_entropy", entropy)
        return softmax_attention(q, k, v, bias=bias, gain=gain, **seen)


class LinearlyProjected(PairwiseMixer):
    """Base of pairwise mixers whose queries, keys and values are linear in the tokens.

    Attributes: those of PairwiseMixer and
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
    """

    qkv_bias: bool = True
    proj_bias: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]

    def _project(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Heads of queries, keys and values."""
        dense = {"use_bias": self.qkv_bias, **self._dense()}
        return self._split(*SplitDense(3, self._width(x), name="qkv", **dense)(x))

    def _project2(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, ...]:
        """The same with keys and values of other tokens."""
        dense, width = {"use_bias": self.qkv_bias, **self._dense()}, self._width(x)
        q = Dense(width, name="q", **dense)(x)
        return self._split(q, *SplitDense(2, width, name="kv", **dense)(memory))


class RecurrentMixer(SequenceMixer):
    """Base of causal mixers with a state of constant size: O(L).

    A subclass has `_mix(x, mask, positions, train, decode)` on tokens [B, L, D].
    """

    proj_bias: ClassVar[bool] = False

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
        """x: [B, L, D] or [B, H, W, D], row by row -> same.

        Args:
          mask: bool [B, L] or [B, H, W]; False is padding, which leaves no trace.
          positions: int [B, L], the position of each token in its document; 0 starts
            a document with an empty state. None: one document a row.
          train: passed to `qk_norm`.
          decode: the tokens continue those of the calls before, see `mixers.cache`,
            which holds the state.

        Raises:
          UserError: `decode` with `positions`.
        """
        shape, x = x.shape, tokens_of(x)
        mask = None if mask is None else mask.reshape(x.shape[:2])
        if decode:
            positions = cache.next_positions(self, x.shape[:2], mask, positions)
        o = self._mix(x, mask, positions, train, decode)
        return self._finish(o, shape[-1]).reshape(shape)

    def _mix(self, x, mask, positions, train, decode):
        raise NotImplementedError

    def _recur(self, q, k, v, log_decay, decode: bool) -> jax.Array:
        """o of `decay.chunked`, from the state in the cache on if there is one."""
        if not decode:
            return decay.chunked(q, k, v, log_decay)[0]
        shape = (len(k), *k.shape[2:], v.shape[-1])
        wide = jnp.result_type(q, k, v, jnp.float32)
        state = cache.variable(self, "state", shape, wide)
        o, state.value = decay.chunked(q, k, v, log_decay, state.value)
        return o
