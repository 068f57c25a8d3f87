"""PRepBN: a norm of one kind handed over to a norm of another during training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from normjax.core.collections import (
    BATCH_STATS,
    COUNTER,
    DIAGNOSTICS,
    LOSSES,
    OVERWRITE,
    PARAMS,
    TRANSIENT,
)
from normjax.core.dtypes import result_dtype
from normjax.core.errors import UserError, one_of
from normjax.core.moments import at_least_float32
from normjax.core.overwrite import keep
from normjax.core.phases import phase_of
from normjax.core.registry import LAYOUTS, OWN_STATE, Part, Spec, with_defaults
from normjax.core.switch import switch
from normjax.norms.base import NORMS, InferenceAffine, reads_batch

EVAL_MIXES = ("end", "current")


def progressive_weight(
    step: jax.Array, warmup_steps: int, decay_steps: int, start: float = 1.0
) -> jax.Array:
    """lam(step): 1 during warmup, then from `start` linearly to 0 over `decay_steps`.

    Args:
      step: int, number of optimizer updates made so far.
      warmup_steps, decay_steps: in optimizer updates.  start: first lam of the decay.

    Returns:
      float of the shape of `step`. The first update after warmup has lam = start, the
      one `decay_steps` later has 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> steps = jnp.array([0, 99, 100, 300, 500, 900])
      >>> print(norms.progressive_weight(steps, warmup_steps=100, decay_steps=400))
      [1.  1.  1.  0.5 0.  0. ]
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

    What the two norms sow arrives under their names. Of one that is not evaluated at
    the time, terms of the loss are 0 and other numbers NaN: not measured.

    Attributes:
      decay_steps, warmup_steps: in optimizer updates.  start: first lam of the decay.
      layer_norm: the norm that is replaced (key, dict or factory; no state).
      batch_norm: the norm that replaces it (state in `batch_stats`, and in
        `_overwrite_with_gradient` if its backward pass writes some).
      eval_mix: "end" evaluates as after the decay (as published), "current" with the
        present lam.
      axis_name, dtype, param_dtype: passed to both, where they take it.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax import norms
      >>> norm = norms.PRepBN(decay_steps=900, warmup_steps=100)
      >>> x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
      >>> variables = norm.init(jax.random.key(1), x, train=True)
      >>> y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
      >>> bool(jnp.allclose(y, norms.layer_normalize(x), atol=1e-4))  # in warmup
      True
      >>> int(state["batch_stats"]["step"]), norm.decay({**variables, **state})
      (1, (1, 1000))
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

    parts: ClassVar[Mapping[str, Part]] = {
        "layer_norm": Part(NORMS, passes=LAYOUTS, refuses=OWN_STATE),
        "batch_norm": Part(NORMS, passes=LAYOUTS, needs=frozenset({"batch_stats"})),
    }

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
        layer = self._norm(self.layer_norm, name="layer_norm")
        batch = self._norm(self.batch_norm, name="batch_norm")
        counter = self.variable(BATCH_STATS, COUNTER, jnp.zeros, (), jnp.int32)
        if self.is_initializing():
            layer(x, mask=mask, train=train)
            return batch(x, mask=mask, train=train)
        if not train and self.eval_mix == "end":
            return batch(x, mask=mask, train=False)
        step = counter.value
        weight = self.weight(step)
        if not train:
            y = batch(x, mask=mask, train=False)
            return _mix(weight, layer(x, mask=mask, train=False), y).astype(y.dtype)
        ends = self.warmup_steps, self.warmup_steps + self.decay_steps
        phase = phase_of(self.path, step, ends)
        y = self._in_phase(phase, weight, (layer, batch), x, mask)
        counter.value = step + 1
        self.sow(DIAGNOSTICS, "lam", weight)
        return y

    def _in_phase(self, phase, weight, norms, x, mask) -> jax.Array:
        """y of a training call; what the norms leave behind goes to their variables."""
        params = [norm.variables.get(PARAMS, {}) for norm in norms]
        dtype = result_dtype(x, *jax.tree.leaves(params), dtype=self.dtype)
        sown = [c for c in TRANSIENT if self.is_mutable_collection(c)]
        stats, overwrite = (
            norms[1].variables.get(collection, {})
            for collection in (BATCH_STATS, OVERWRITE)
        )
        layer, batch = (norm.clone(parent=None) for norm in norms)
        phases = _Phases(layer, batch, dtype, sown)
        constants, operands = (weight, mask, stats), (x, *params, overwrite)
        branches = phases.branches(constants, operands)
        (y, losses), (stats, others) = switch(phase, branches, constants, operands)
        for norm, left in zip(norms, losses, strict=True):
            _add_sown(norm, left)
        for norm, left in zip(norms, others, strict=True):
            _add_sown(norm, left)
        for name, value in stats.items():
            norms[1].put_variable(BATCH_STATS, name, value)
        return y

    @nn.nowrap
    def _norm(self, spec: Spec, **where) -> nn.Module:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        factory = NORMS.factory(spec)
        return with_defaults(factory, **types, axis_name=self.axis_name)(**where)

    @property
    def reads_batch(self) -> bool:
        """Whether evaluation is by the statistics of the batch as well."""
        return reads_batch(self._norm(self.batch_norm, parent=None))

    @nn.nowrap
    def weight(self, step: jax.Array) -> jax.Array:
        """lam after `step` updates, int of any shape."""
        return progressive_weight(step, self.warmup_steps, self.decay_steps, self.start)

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
        batch: Any = self._norm(self.batch_norm, parent=None)
        if not hasattr(batch, "inference_affine"):
            return None
        inner = {c: tree.get("batch_norm") for c, tree in variables.items()}
        return batch.inference_affine({c: t for c, t in inner.items() if t is not None})


def _mix(weight: jax.Array, y_layer: jax.Array, y_batch: jax.Array) -> jax.Array:
    return weight * at_least_float32(y_layer) + (1 - weight) * at_least_float32(y_batch)


Sown = Mapping[str, Any]


"""What a norm has sown, by collection."""


class _Phases:
    """The norm before, during and after the decay, as pure functions for `switch`.

    Each gives ((y, losses of both norms), (statistics, what else both have sown)).
    """

    def __init__(
        self, layer: nn.Module, batch: nn.Module, dtype: Dtype, sown: Sequence[str]
    ):
        self._norms = layer, batch
        self._dtype, self._sown = dtype, list(sown)

    def branches(self, constants: Any, operands: Any) -> tuple[Callable, ...]:
        """Those for arguments of these shapes."""
        empty = {}, {}
        if self._sown:
            runs = self._run_layer, self._run_batch
            shapes = [jax.eval_shape(run, constants, operands)[-1] for run in runs]
            empty = tuple(jax.tree_util.tree_map_with_path(_missing, s) for s in shapes)

        def finish(y, sown, stats):
            losses = tuple({k: v for k, v in s.items() if k == LOSSES} for s in sown)
            others = tuple({k: v for k, v in s.items() if k != LOSSES} for s in sown)
            return (y.astype(self._dtype), losses), (stats, others)

        def warmup(constants, operands):
            y, sown = self._run_layer(constants, operands)
            y = keep(y, operands[-1])
            return finish(y, (sown, empty[1]), constants[-1])

        def decay(constants, operands):
            y_layer, sown = self._run_layer(constants, operands)
            y, stats, more = self._run_batch(constants, operands)
            return finish(_mix(constants[0], y_layer, y), (sown, more), stats)

        def end(constants, operands):
            y, stats, sown = self._run_batch(constants, operands)
            return finish(y, (empty[0], sown), stats)

        return warmup, decay, end

    def _run_layer(self, constants, operands) -> tuple[Any, Sown]:
        (_, mask, _), (x, params, _, _) = constants, operands
        known = {"mask": mask, "train": True, "mutable": self._sown}
        return self._norms[0].apply({PARAMS: params}, x, **known)

    def _run_batch(self, constants, operands) -> tuple[Any, Any, Sown]:
        (_, mask, stats), (x, _, params, overwrite) = constants, operands
        variables = {PARAMS: params, BATCH_STATS: stats, OVERWRITE: overwrite}
        known = {"mask": mask, "train": True, "mutable": [BATCH_STATS, *self._sown]}
        y, new = self._norms[1].apply(variables, x, **known)
        sown = {k: v for k, v in new.items() if k != BATCH_STATS}
        return y, new[BATCH_STATS], sown


def _missing(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """What stands for a number that was not sown; branches close over no tracer."""
    number = jnp.issubdtype(shape.dtype, jnp.floating) and path[0].key != LOSSES
    return np.full(shape.shape, np.nan if number else 0, shape.dtype)


def _add_sown(norm: nn.Module, sown: Sown) -> None:
    """Add to the variables of a norm what it has sown in a call of its own."""
    for collection, tree in sown.items():
        for name, new in tree.items():
            old = norm.get_variable(collection, name)
            value = new if old is None else _joined(old, new)
            norm.put_variable(collection, name, value)


def _joined(old: Any, new: Any) -> Any:
    """Two trees of what was sown, tuples one behind the other."""
    if not isinstance(new, Mapping):
        return (*old, *new)
    common = {k: _joined(old[k], v) for k, v in new.items() if k in old}
    return {**old, **new, **common}
