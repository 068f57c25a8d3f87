"""Attention that also meets learned keys and values, other ones in each stream."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.dense import Dense
from normjax.core.errors import UserError
from normjax.core.ranges import POSITIVE, Range
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

_small = nn.initializers.normal(0.02)


@MIXERS.register("prefix_attention", "seq", "grid", "causal", "decode", "mask")
class PrefixAttention(Mixer):
    """`grouped_query` whose queries see `prefix_length` learned keys and values first.

    Prefix tuning (Li and Liang, 2021), and ParScale (Chen et al., 2025), whose rows are
    P `streams` of B examples, row stream * B + example: each stream has prefixes of its
    own. They have no position and are never hidden; one softmax over them and the
    tokens. O(L (L + prefix_length) D) multiply-adds.

    Attributes:
      streams: P, a divisor of the rows.
      prefix_length: learned keys and values of a stream.
      num_kv_heads: heads of keys and values, a divisor of `num_heads`.
      causal: no position sees a later one.
      rotary_base: queries and keys turn by their position (`ops.rotary.rotate_halves`)
        with frequencies down to 1 / rotary_base; None: they do not.
      qkv_bias: bias of the projections to queries, keys and values.
      proj_bias: bias of the output projection.
      joint: one layer `qkv` for queries, keys and values, in this order, instead of `q`
        and `kv`.
      num_heads: heads of the queries; each has K = D / num_heads channels.
      qkv_features: width D of the queries; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None; not to
        prefixes.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.PrefixAttention(num_heads=4, streams=2, prefix_length=3)
      >>> x = jax.random.normal(jax.random.key(0), (2 * 5, 6, 8))  # [P B, L, D]
      >>> y, variables = mixer.init_with_output(jax.random.key(1), x)
      >>> y.shape, variables["params"]["prefix_key"].shape
      ((10, 6, 8), (2, 3, 1, 2))
    """

    streams: int = 1
    prefix_length: int = 48
    num_kv_heads: int = 1
    causal: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    joint: bool = False

    ranges: ClassVar[Mapping[str, Range]] = {
        "streams": POSITIVE,
        "prefix_length": POSITIVE,
    }

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
          UserError: rows that do not make streams, or heads that do not make groups;
            `decode` without `causal` or with `positions`.
        """
        check_order(self, None, positions, decode)
        rows, mask = rows_of(x, mask)
        q, k, v = project_groups(self, rows)
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        positions = cache.positions_of(self, rows, mask, positions, decode)
        places = positions
        if places is None and mask is not None:
            # Prefixes do not turn: padding must not shift the tokens.
            places = jnp.cumsum(mask, 1) - 1
        q, k = place(q, k, places, self.rotary_base)
        k, v, seen = cache.remember(self, k, v, positions, mask, decode)
        k, v, seen = self._met(k, v, seen, rows.shape[1])
        o = merge_heads(attend(self, q, k, v, **seen))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o).reshape(x.shape)

    def _met(
        self, k: jax.Array, v: jax.Array, seen: dict[str, Any], length: int
    ) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """Keys and values behind the prefixes, and which of them are seen."""
        if len(k) % self.streams:
            raise UserError(f"{len(k)} rows do not make {self.streams} streams")
        examples = len(k) // self.streams
        shape = (self.streams, self.prefix_length, *k.shape[2:])

        def after_prefix(name, t):
            prefix = self.param(name, _small, shape, self.param_dtype)
            rows = jnp.repeat(prefix.astype(t.dtype), examples, 0)
            return jnp.concatenate((rows, t), 1)

        mask = seen["mask"]
        if seen["causal"]:
            order = jnp.tri(length, dtype=bool)[None, None]
            mask = order if mask is None else mask & order
        if mask is not None:
            always = jnp.ones((*mask.shape[:-1], self.prefix_length), bool)
            mask = jnp.concatenate((always, mask), -1)
        k, v = after_prefix("prefix_key", k), after_prefix("prefix_value", v)
        return k, v, {**seen, "mask": mask, "causal": False}
