"""What a run is at one moment."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from normjax.core.collections import BATCH_STATS, PARAMS, TRAINING, TRANSIENT
from normjax.tasks.base import Inputs


class Taken(NamedTuple):
    """Batches of their first size, of a run whose batches grow; int32 scalars.

    Attributes:
      before: that updates have taken.  parts: that the next one takes.
    """

    before: jax.Array
    parts: jax.Array

    @classmethod
    def start(cls) -> "Taken":
        """Before the first update, which takes one."""
        return cls(jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32))

    def after_update(self) -> "Taken":
        """Whether or not the update was left out."""
        return self._replace(before=self.before + self.parts)


class TrainState(flax.struct.PyTreeNode):
    """State of training; everything that a checkpoint holds.

    Attributes:
      step: int32 scalar, optimizer updates made so far.
      params: trained parameters, float32.
      model_state: every other collection of the model ("batch_stats", ...), by name.
      opt_state: state of the optimizer.
      ema: running average of `params`, or None.
      ema_stats: running average of the collection "batch_stats", where there are both,
        or None: what the averaged parameters are evaluated with, as far behind as they
        are. Counters in it are those of the model.
      rng: key data (uint32) of the run; every random key is folded from it and `step`.
      taken: of a run whose batches grow, the batches of their first size that updates
        have taken, and those that the next one takes; else None.
      memory: what the rule of a run carries from update to update (`train.rules`), or
        None.
    """

    step: jax.Array
    params: Any
    model_state: dict[str, Any]
    opt_state: Any
    ema: Any
    rng: jax.Array
    ema_stats: Any = None
    taken: Any = None
    memory: Any = None

    def variables(self) -> dict[str, Any]:
        """The variables that are trained, and the other collections of the model."""
        return {PARAMS: of_model(self.params), **self.model_state}

    def carried(self) -> dict[str, Any]:
        """Collections that an update changes: those of the model, and the memory."""
        memory = {} if self.memory is None else {TRAINING: self.memory}
        return {**self.model_state, **memory}

    def eval_variables(self) -> dict[str, Any]:
        """Variables to evaluate with: the averages if there are any."""
        params = self.params if self.ema is None else self.ema
        variables = {PARAMS: of_model(params), **self.model_state}
        if self.ema_stats is not None:
            variables[BATCH_STATS] = self.ema_stats
        return variables

    def with_new_ema_stats(self) -> "TrainState":
        """The same with an average of batch statistics that begins now."""
        stats = jax.tree.map(jnp.copy, self.model_state[BATCH_STATS])
        return self.replace(ema_stats=stats)

    def with_eval_stats(self, stats: Any) -> "TrainState":
        """The same with other batch statistics in `eval_variables`."""
        if self.ema_stats is not None:
            return self.replace(ema_stats=stats)
        return self.replace(model_state={**self.model_state, BATCH_STATS: stats})


def of_model(params: Any) -> Any:
    """Parameters without the branch that only training reads."""
    return {name: p for name, p in params.items() if name != TRAINING}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    inputs: Inputs,
    *,
    use_ema: bool,
    grows: bool = False,
    begin: Callable[[Any], Any] = lambda variables: variables,
    memory: Callable[[Any], Any] = lambda variables: None,
) -> TrainState:
    """The state before the first step; a pure function of the seed, made to be jitted.

    Args:
      inputs: what the model is called with, of any values.
      begin: what becomes of the variables that it makes.
      memory: of those, what a rule carries.
    """
    rng, (x, known) = jax.random.key(seed), inputs
    variables = dict(model.init({"params": rng}, x, train=False, **known))
    variables = begin(variables)
    state = state_of(variables, optimizer, rng, use_ema=use_ema, grows=grows)
    return state.replace(memory=memory(variables))


def state_of(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    *,
    use_ema: bool,
    grows: bool = False,
) -> TrainState:
    """The state before the first step of a model that begins with `variables`.

    Args:
      rng: key of the run.
      use_ema: whether parameters are averaged.  grows: whether batches grow.
    """
    params = variables[PARAMS]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={
            k: v for k, v in variables.items() if k not in (PARAMS, *TRANSIENT)
        },
        opt_state=optimizer.init(params),
        ema=params if use_ema else None,
        rng=jax.random.key_data(rng),
        ema_stats=variables.get(BATCH_STATS) if use_ema else None,
        taken=Taken.start() if grows else None,
    )


def with_parts(state: TrainState, parts: int) -> TrainState:
    """The state of a run whose next update takes so many batches."""
    there = state.taken.parts
    new = jax.device_put(jnp.asarray(parts, jnp.int32), there.sharding)
    return state.replace(taken=state.taken._replace(parts=new))
