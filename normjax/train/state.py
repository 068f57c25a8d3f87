"""What a run is at one moment."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from normjax.core.collections import PARAMS, TRANSIENT
from normjax.tasks.base import Inputs


class TrainState(flax.struct.PyTreeNode):
    """State of training; everything that a checkpoint holds.

    Attributes:
      step: int32 scalar, optimizer updates made so far.
      params: trained parameters, float32.
      model_state: every other collection of the model ("batch_stats", ...), by name.
      opt_state: state of the optimizer.
      ema: running average of `params`, or None.
      rng: key data (uint32) of the run; every random key is folded from it and `step`.
    """

    step: jax.Array
    params: Any
    model_state: dict[str, Any]
    opt_state: Any
    ema: Any
    rng: jax.Array

    def eval_variables(self) -> dict[str, Any]:
        """Variables to evaluate with: the average of the parameters if there is one."""
        params = self.params if self.ema is None else self.ema
        return {PARAMS: params, **self.model_state}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    inputs: Inputs,
    *,
    use_ema: bool,
) -> TrainState:
    """The state before the first step; a pure function of the seed, made to be jitted.

    Args:
      inputs: what the model is called with, of any values.
    """
    rng, (x, known) = jax.random.key(seed), inputs
    variables = model.init({"params": rng}, x, train=False, **known)
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
    )
