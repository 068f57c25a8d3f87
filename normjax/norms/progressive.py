"""PRepBN: a norm of one kind handed over to a norm of another during training."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from normjax.core.collections import (
    BATCH_STATS,
    COUNTER,
    DIAGNOSTICS,
    OVERWRITE,
    PARAMS,
)
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.core.overwrite import keep
from normjax.core.registry import Spec
from normjax.core.switch import switch
from normjax.norms.base import NORMS, InferenceAffine, reads_batch
from normjax.norms.batch import LAYOUTS

EVAL_MIXES = ("end", "current")


def progressive_weight(
    step: jax.Array, warmup_steps: int, decay_steps: int, start: float = 1.0
) -> jax.Array:
    """lam(step): 1 during warmup, then from `start` linearly to 0 over `decay_steps`.

    Args:
      step: int, number of optimizer updates made so far.

    Returns:
      float of the shape of `step`. The first update after warmup has lam = start, the
      one `decay_steps` later has 0.
    """
    done = (step - warmup_steps).astype(float) / max(decay_steps, 1)
    return jnp.where(step < warmup_steps, 1.0, start * jnp.clip(1.0 - done, 0.0, 1.0))


@NORMS.register("prepbn", "batch_stats", "mask", "axis_name", *LAYOUTS)
class PRepBN(nn.Module):
    """y = lam * LN(x) + (1 - lam) * RepBN(x), lam falling to 0 (Guo et al., 2024).

    lam is 1 for `warmup_steps` updates, in which RepBN is not evaluated and its
    statistics do not move, then falls linearly over `decay_steps`; afterwards LayerNorm
    is not evaluated any more. lam is a constant for the gradient. At evaluation the
    result is RepBN's alone, so the module folds away.

    Keeps the counter `batch_stats/step` (int32): one tick a training call. A loop that
    makes several calls per update holds it still (`core.collections.hold_counters`).

    Attributes:
      decay_steps, warmup_steps: in optimizer updates.  start: first lam of the decay.
      layer_norm: the norm that is replaced (key, dict or factory; no state).
      batch_norm: the norm that replaces it (state in `batch_stats`, and in
        `_overwrite_with_gradient` if its backward pass writes some).
      eval_mix: "end" evaluates as after the decay (as published), "current" with the
        present lam.
      axis_name: passed to `batch_norm`.  dtype, param_dtype: passed to both.
    """

    decay_steps: int
    warmup_steps: int = 0
    start: float = 1.0
    layer_norm: Spec = "layer_norm"
    batch_norm: Spec = "repbn"
    eval_mix: str = "end"
    axis_name: str | tuple[str, ...] | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool | None = None,
    ) -> jax.Array:
        """x: [..., C] -> [..., C]; `mask` and `train` as in BatchNorm."""
        if train is None:
            raise UserError("PRepBN needs train=True or train=False")
        if self.eval_mix not in EVAL_MIXES:
            raise UserError(one_of("eval_mix", self.eval_mix, EVAL_MIXES))
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        layer = NORMS.factory(self.layer_norm, **types)(name="layer_norm")
        batch = self._batch_norm(name="batch_norm")
        counter = self.variable(BATCH_STATS, COUNTER, jnp.zeros, (), jnp.int32)
        if self.is_initializing():
            layer(x)
            return batch(x, mask=mask, train=train)
        if not train and self.eval_mix == "end":
            return batch(x, mask=mask, train=False)
        step = counter.value
        weight = progressive_weight(
            step, self.warmup_steps, self.decay_steps, self.start
        )
        if not train:
            y = batch(x, mask=mask, train=False)
            return _mix(weight, layer(x), y).astype(y.dtype)
        phase = (step >= self.warmup_steps).astype(jnp.int32)
        phase += step >= self.warmup_steps + self.decay_steps
        params = [norm.variables.get(PARAMS, {}) for norm in (layer, batch)]
        dtype = result_dtype(x, *jax.tree.leaves(params), dtype=self.dtype)
        y, stats = switch(
            phase,
            _phases(layer.clone(parent=None), batch.clone(parent=None), dtype),
            (weight, mask, batch.variables[BATCH_STATS]),
            (x, *params, batch.variables.get(OVERWRITE, {})),
        )
        for name, value in stats.items():
            batch.put_variable(BATCH_STATS, name, value)
        counter.value = step + 1
        self.sow(DIAGNOSTICS, "lam", weight)
        return y

    @nn.nowrap
    def _batch_norm(self, **where) -> nn.Module:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        factory = NORMS.factory(self.batch_norm, **types)
        return factory(axis_name=self.axis_name, **where)

    @property
    def reads_batch(self) -> bool:
        """Whether evaluation is by the statistics of the batch as well."""
        return reads_batch(self._batch_norm(parent=None))

    @nn.nowrap
    def decay(self, variables: Mapping[str, Any]) -> tuple[int, int] | None:
        """(updates made, updates until lam is 0), or None once it is.

        Args:
          variables: this module's own `{"params": ..., "batch_stats": ...}`.
        """
        made = int(variables[BATCH_STATS][COUNTER])
        end = self.warmup_steps + self.decay_steps
        return (made, end) if made < end else None

    @nn.nowrap
    def inference_affine(self, variables: Mapping[str, Any]) -> InferenceAffine | None:
        """That of `batch_norm`, if it has one; None while `layer_norm` is mixed in."""
        if self.eval_mix != "end" and self.decay(variables):
            return None
        batch = self._batch_norm(parent=None)
        if not hasattr(batch, "inference_affine"):
            return None
        inner = {c: tree.get("batch_norm") for c, tree in variables.items()}
        return batch.inference_affine({c: t for c, t in inner.items() if t is not None})


def _mix(weight: jax.Array, y_layer: jax.Array, y_batch: jax.Array) -> jax.Array:
    return weight * at_least_float32(y_layer) + (1 - weight) * at_least_float32(y_batch)


def _phases(layer: nn.Module, batch: nn.Module, dtype: Dtype) -> tuple:
    """The norm before, during and after the decay, as pure functions for `switch`."""

    def run_layer(operands) -> Any:
        x, params, _, _ = operands
        return layer.apply({PARAMS: params}, x)

    def run_batch(constants, operands):
        _, mask, stats = constants
        x, _, params, overwrite = operands
        variables = {PARAMS: params, BATCH_STATS: stats, OVERWRITE: overwrite}
        y, new = batch.apply(variables, x, mask=mask, train=True, mutable=[BATCH_STATS])
        return y, new[BATCH_STATS]

    def warmup(constants, operands):
        _, _, stats = constants
        y = run_layer(operands).astype(dtype)
        return keep(y, operands[-1]), stats

    def decay(constants, operands):
        y, stats = run_batch(constants, operands)
        return _mix(constants[0], run_layer(operands), y).astype(dtype), stats

    def end(constants, operands):
        y, stats = run_batch(constants, operands)
        return y.astype(dtype), stats

    return warmup, decay, end
