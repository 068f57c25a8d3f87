"""Two runs that differ as little as two runs can."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax.train.experiment import build_experiment
from normjax.train.programs import jit_train_step


def one_bit(seed: int, folder: Path, config: Any) -> Mapping[str, float]:
    """How two runs differ of which one weight differs in its last bit.

    The same batches in the same order. `difference`: mean over the images of the eval
    split of sum |p - p'| / 2; `disagreement`: images that the two put into different
    classes, as a share (Shamir et al., 2022).

    Args:
      seed: of the run.  folder: not used.  config: of image classification.
    """
    config = config.copy_and_resolve_references()
    config.seed = seed
    experiment = build_experiment(config)
    step = jit_train_step(experiment)
    first, second = (_predicted(experiment, step, moved) for moved in (False, True))
    differ = first.argmax(-1) != second.argmax(-1)
    gap = np.abs(first - second).sum(-1).mean() / 2
    return {"difference": float(gap), "disagreement": float(differ.mean())}


def _predicted(experiment: Any, step: Any, moved: bool) -> np.ndarray:
    """Probabilities of the eval split after the run."""
    state = experiment.create_state()
    if moved:
        leaves, structure = jax.tree.flatten(state.params)
        # Not a bias of 0, whose last bit is flushed away.
        i = max(range(len(leaves)), key=lambda i: leaves[i].size)
        flat = leaves[i].ravel()
        flat = flat.at[0].set(jnp.nextafter(flat[0], jnp.inf))
        leaves[i] = flat.reshape(leaves[i].shape)
        state = state.replace(params=jax.tree.unflatten(structure, leaves))
    batches = experiment.train_batches()
    for _ in range(experiment.config.total_steps):
        state, _ = step(state, next(batches))
    variables, objective = state.eval_variables(), experiment.task.objective

    @jax.jit
    def answers(batch):
        x, known = objective.inputs(batch)
        return jax.nn.softmax(experiment.model.apply(variables, x, **known))

    found = []
    for batch in experiment.eval_batches(experiment.config.data.eval_split):
        found.append(np.asarray(answers(batch))[np.asarray(objective.rows(batch))])
    return np.concatenate(found)
