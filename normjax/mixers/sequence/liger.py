"""Softmax attention of trained language models as a gated recurrence and a window."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.dense import Dense
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.core.ranges import POSITIVE, Range
from normjax.mixers import cache
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops import decay
from normjax.mixers.ops.gated_slots import gated_slots
from normjax.mixers.ops.heads import as_many_heads, merge_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.rotary import place
from normjax.mixers.steps import dense_of, normalized_heads, project_groups, rows_of

_NORMALIZER = 16.0
"""Decays are sigmoid(p)**(1 / 16) where nothing else is said."""

Places = tuple[jax.Array | None, jax.Array | None]


@MIXERS.register("liger", "seq", "grid", "causal", "decode", "mask")
class LigerAttention(Mixer):
    """A gated recurrence plus a window of softmax, without new weights (Liger). Causal.

        y = proj((o + r) / 2)       o: softmax attention to the last `window` keys

    and r, per head, of what the layers of softmax attention give (Lan et al., 2025):

        gla    d = sigmoid(k)**(1 / 16)   S_t = diag(d_t) S_{t-1} + softmax(k_t) v_t^T
                                          r_t = S_t^T softmax(q_t)
        hgrn2  d = sigmoid(k)             S_t = diag(d_t) S_{t-1} + (1 - d_t) v_t^T
                                          r_t = S_t^T softmax(q_t)
        gsa    d = sigmoid(pool(k))**(1 / 16), shares 1 - d of `num_slots` slots,
               r = `ops.gated_slots`

    Queries and keys turn in the window alone. O(L (window + C + K) D) multiply-adds in
    blocks of C = 64; gates, states and softmax in at least float32. Its layers are
    those of `grouped_query`, or `joint` of `softmax`, whose weights it takes.

    Attributes:
      recurrence: that of r: "gla", "hgrn2" or "gsa".
      window: how far back o sees; 64 as released.
      num_slots: slots of "gsa", means over equal parts of the channels of a key; None
        for one a channel.
      num_kv_heads: heads of keys and values, a divisor of `num_heads`; None for those.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the projections to queries, keys and values.
      proj_bias: bias of the output projection.
      joint: one layer `qkv`, that of `softmax`, instead of `q` and `kv`.
      num_heads: heads of the queries; each has K = D / num_heads channels.
      qkv_features: width D of the queries; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.LigerAttention(num_heads=4, num_kv_heads=2, window=3)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> plain = {"num_heads": 4, "num_kv_heads": 2, "qkv_bias": False}
      >>> softmax = mixers.GroupedQueryAttention(proj_bias=False, **plain)
      >>> variables = softmax.init(jax.random.key(1), x)  # a layer that was trained
      >>> mixer.apply(variables, x).shape
      (2, 6, 8)
    """

    recurrence: str = "gla"
    window: int = 64
    num_slots: int | None = None
    num_kv_heads: int | None = None
    rotary_base: float | None = 10000.0
    qkv_bias: bool = False
    proj_bias: bool = False
    joint: bool = False

    ranges: ClassVar[Mapping[str, Range]] = {"num_slots": POSITIVE}

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
          UserError: unknown `recurrence`; `num_slots` beside another than "gsa"; heads
            that do not make groups; `decode` with `positions`.
        """
        self._check()
        rows, mask = rows_of(x, mask)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        q, k, v = project_groups(self, rows)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        near = place(q, k, positions, self.rotary_base)
        o = cache.within_window(self, *near, v, mask, positions, decode)
        k, v = (as_many_heads(t, self.num_heads) for t in (k, v))
        wide = map(at_least_float32, (q, k))
        r = RECURRENCES[self.recurrence](self, *wide, v, (mask, positions), decode)
        o = merge_heads(0.5 * (only_tokens(o, mask) + r.astype(o.dtype)))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    @nn.nowrap
    def _check(self) -> None:
        if self.recurrence not in RECURRENCES:
            raise UserError(one_of("recurrence", self.recurrence, RECURRENCES))
        if self.num_slots is not None and self.recurrence != "gsa":
            raise UserError(
                f"num_slots is of recurrence 'gsa', this one is {self.recurrence!r}"
            )


def _gated_linear(module, q, k, v, places: Places, decode: bool) -> jax.Array:
    forgets = _within(jax.nn.log_sigmoid(k) / _NORMALIZER, places)
    q, k = (jax.nn.softmax(t, -1).astype(v.dtype) for t in (q, k))
    k = only_tokens(k, places[0])
    return cache.recur(module, q, k, v, forgets, decode=decode)


def _hgrn2(module, q, k, v, places: Places, decode: bool) -> jax.Array:
    forgets = _within(jax.nn.log_sigmoid(k), places)
    kept = only_tokens(jax.nn.sigmoid(-k), places[0]).astype(v.dtype)
    q = jax.nn.softmax(q, -1).astype(v.dtype)
    return cache.recur(module, q, kept, v, forgets, decode=decode)


def _gated_slots(module, q, k, v, places: Places, decode: bool) -> jax.Array:
    pooled = k
    if module.num_slots is not None:
        pooled = k @ jnp.asarray(_pooling(k.shape[-1], module.num_slots), k.dtype)
    forgets = jax.nn.log_sigmoid(pooled) / _NORMALIZER
    shares = only_tokens(-jnp.expm1(forgets), places[0])
    forgets, states = _within(forgets, places), None
    if not decode:
        return gated_slots(q, k, v, shares, forgets)[0]
    (batch, _, heads, size), slots = k.shape, pooled.shape[-1]
    keys = cache.variable(module, "slot_keys", (batch, heads, size, slots), k.dtype)
    values = cache.variable(module, "slot_values", (batch, heads, slots, size), k.dtype)
    states = keys.value, values.value
    o, (keys.value, values.value) = gated_slots(q, k, v, shares, forgets, states)
    return o


def _within(forgets: jax.Array, places: Places) -> jax.Array:
    return decay.within_documents(forgets, forgets.shape[:2], *places)


def _pooling(channels: int, bins: int) -> np.ndarray:
    """[channels, bins]: bin i is the mean of channels i C // m to ceil((i + 1) C / m).

    The adaptive average pooling of PyTorch; bins may share channels.
    """
    table = np.zeros((channels, bins))
    for i in range(bins):
        bin_ = slice(i * channels // bins, -(-(i + 1) * channels // bins))
        table[bin_, i] = 1 / (bin_.stop - bin_.start)
    return table


RECURRENCES: Mapping[str, Callable[..., Any]] = {
    "gla": _gated_linear,
    "hgrn2": _hgrn2,
    "gsa": _gated_slots,
}
"""Of (module, q, k, v, (mask, positions), decode) -> r [B, L, H, V], by name."""
