"""Which parts of a network move when tasks follow each other."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from normjax.analysis import parameter_changes
from normjax.core.errors import UserError, one_of
from normjax.train.config import plain
from normjax.train.experiment import build_experiment
from normjax.train.programs import jit_train_step

PARTS = {
    "norm": "norm",
    "stem": "^stem",
    "head": "^head",
    "mixer": "mixer",
    "mlp": "mlp",
    "conv": "conv",
}
"""By the path of a parameter, the first that is found."""

CLASSES, INTERVALS = 2, 4
"""Classes of a task, and moments within it between which changes are measured."""


def task_switch(seed: int, folder: Path, config: Any, part: str) -> Mapping[str, float]:
    """How much more a part of a model changes behind a switch of tasks than else.

    Classes come two by two, each pair a task for as many updates. `switch`: the mean
    |change| of a parameter in the first quarter of a task, all but the first, by that
    in the other three; see `analysis.parameter_changes`.

    Args:
      seed: of the run.  folder: not used.
      config: of image classification, with updates for all tasks.
      part: a key of `PARTS`.
    """
    del folder
    if part not in PARTS:
        raise UserError(one_of("part", part, PARTS))
    changes = _changes(json.dumps(plain(config)), seed)
    own = changes[part].reshape(-1, INTERVALS)
    return {"switch": float(own[1:, 0].mean() / own[:, 1:].mean())}


@functools.lru_cache(maxsize=1)
def _changes(config: str, seed: int) -> dict[str, np.ndarray]:
    """Of all parts: [tasks * INTERVALS]; kept, as every part asks for the same run."""
    given: Any = ConfigDict(json.loads(config))
    given.seed = seed
    experiment = build_experiment(given)
    source = experiment.task.source(given.data.train_split)
    images, labels = source.gather(np.arange(len(source)))
    step, state = jit_train_step(experiment), experiment.create_state()
    rng, states = np.random.default_rng(seed), [jax.device_get(state.params)]
    tasks = len(source.class_names) // CLASSES
    updates = given.total_steps // (tasks * INTERVALS)
    for moment in range(tasks * INTERVALS):
        own = np.flatnonzero(labels // CLASSES == moment // INTERVALS)
        for _ in range(updates):
            rows = rng.choice(own, given.batch_size)
            batch = {"image": images[rows], "label": labels[rows].astype(np.int32)}
            state, _ = step(state, batch)
        states.append(jax.device_get(state.params))
    return parameter_changes(states, PARTS)
