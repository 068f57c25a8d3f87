"""Attention that learns not to look ahead: iLLaMA's masks behind the softmax."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import BATCH_STATS, COUNTER
from normjax.core.dense import Dense
from normjax.core.errors import UserError, one_of
from normjax.core.ranges import COUNT, FRACTION, Range
from normjax.mixers.base import MIXERS, Mixer
from normjax.mixers.ops.attend import leaking_attention
from normjax.mixers.ops.heads import merge_heads, split_heads
from normjax.mixers.ops.masks import only_tokens
from normjax.mixers.ops.rotary import rotary_frequencies, rotate_pairs
from normjax.mixers.steps import dense_of, normalized_heads, project, rows_of

SCHEDULES = ("linear", "constant")


def soft_mask_rate(
    step: jax.Array | int, first: float, steps: int, schedule: str = "linear"
) -> jax.Array:
    """How much of later tokens an update sees (iLLaMA; Wang et al., 2024).

    "linear": from `first` in the first of `steps` updates to 0 in the last of them;
    "constant": `first` in all of them. Then 0.

    Args:
      step: updates made before this one.
      first: the first rate.  steps: 0: the first rate for ever.
      schedule: "linear" or "constant".

    Returns:
      a scalar in at least float32.

    Raises:
      UserError: another schedule.

    Example:
      >>> from normjax import mixers
      >>> [float(mixers.soft_mask_rate(step, 1.0, 3)) for step in range(4)]
      [1.0, 0.5, 0.0, 0.0]
    """
    if schedule not in SCHEDULES:
        raise UserError(one_of("schedule of the soft mask", schedule, SCHEDULES))
    dtype = jnp.result_type(float)
    rate = jnp.asarray(first, dtype)
    if not steps:
        return rate
    step = jnp.asarray(step)
    if schedule == "linear":
        rate = rate * (1 - step.astype(dtype) / max(steps - 1, 1))
    return jnp.where(step < steps, rate, 0)


@MIXERS.register("soft_causal", "seq", "mask")
class SoftCausalAttention(Mixer):
    """(M * softmax(q k^T / sqrt(K))) v per head, M = 1 before and r behind a query.

    iLLaMA (Wang et al., 2024). The softmax is over all tokens and M acts behind it, as
    published: at r = 0 later tokens still count in the weights of earlier ones, which
    sum to less than 1. With `renormalized` they do not: that is causal attention at r =
    0 and attention to all at r = 1. r falls over the updates (`soft_mask_rate`), of
    which the counter `batch_stats/step` is kept where it does; an evaluation sees what
    the next update would. Queries and keys turn by their place, channel 2 i with 2 i +
    1. O(L**2 D) multiply-adds; softmax in float32.

    Attributes:
      soft_mask: the first r, from 0 to 1.
      soft_steps: updates until r is 0; 0: it stays.
      soft_schedule: "linear" or "constant" over these.
      renormalized: weights of a query sum to 1.
      rotary_base: frequencies down to 1 / rotary_base; None: nothing turns.
      qkv_bias: bias of the joint query-key-value projection.
      proj_bias: bias of the output projection.
      num_heads: heads; each has K = D / num_heads channels.
      qkv_features: width D of queries, keys and values; None for that of x.
      qk_norm: factory of a norm applied to queries and keys per head, or None.
      dtype: of the computation.  param_dtype, kernel_init: of the parameters.

    Example:
      >>> import jax
      >>> from normjax import mixers
      >>> mixer = mixers.SoftCausalAttention(num_heads=2, soft_mask=1.0, soft_steps=10)
      >>> x = jax.random.normal(jax.random.key(0), (2, 6, 8))  # [B, L, D]
      >>> variables = mixer.init(jax.random.key(1), x)
      >>> y, state = mixer.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> y.shape, int(state["batch_stats"]["step"])
      ((2, 6, 8), 1)
    """

    soft_mask: float = 0.0
    soft_steps: int = 0
    soft_schedule: str = "linear"
    renormalized: bool = False
    rotary_base: float | None = 10000.0
    qkv_bias: bool = True
    proj_bias: bool = True

    ranges: ClassVar[Mapping[str, Range]] = {
        "soft_mask": FRACTION,
        "soft_steps": COUNT,
    }

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """x: [B, L, D] -> same.  mask: bool [B, L], False at padding.

        Raises:
          UserError: an unknown schedule, or heads of an odd width that turn.
        """
        rows, mask = rows_of(x, mask)
        q, k, v = (split_heads(t, self.num_heads) for t in project(self, rows))
        q, k = normalized_heads(self, q, k, mask=mask, train=train)
        q, k = self._placed(q), self._placed(k)
        k, v = only_tokens(k, mask), only_tokens(v, mask)
        visible = None if mask is None else mask[:, None, None, :]
        kind = {"mask": visible, "renormalized": self.renormalized}
        o = merge_heads(leaking_attention(q, k, v, self._rate(train), **kind))
        dense = {"use_bias": self.proj_bias, **dense_of(self)}
        return Dense(x.shape[-1], name="proj", **dense)(o)

    def _placed(self, t: jax.Array) -> jax.Array:
        if self.rotary_base is None:
            return t
        if t.shape[-1] % 2:
            width = t.shape[-1]
            raise UserError(f"heads of {width} channels: rotation needs an even number")
        frequencies = rotary_frequencies(t.shape[-1], self.rotary_base)
        angles = np.arange(t.shape[1])[:, None] * frequencies
        return rotate_pairs(t, angles)

    def _rate(self, train: bool) -> jax.Array:
        """r, and one update more where the model trains."""
        kind = self.soft_mask, self.soft_steps, self.soft_schedule
        if not self.soft_steps:
            return soft_mask_rate(0, *kind)
        counter = self.variable(BATCH_STATS, COUNTER, jnp.zeros, (), jnp.int32)
        step = counter.value
        if train and not self.is_initializing():
            counter.value = step + 1
        return soft_mask_rate(step, *kind)
