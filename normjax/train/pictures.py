"""What TensorBoard shows of an evaluation besides scores: pictures and histograms."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from normjax.core.collections import BATCH_STATS, COUNTER
from normjax.core.errors import printable
from normjax.core.scanned import scanned_of, split_layers
from normjax.devices.processes import is_first
from normjax.records import pictures
from normjax.train.experiment import Experiment

EXAMPLES = 12
"""Of the split, spread over it; the same at every evaluation."""

Rows = Sequence[Mapping[str, np.ndarray]]
"""What the scored step says of the rows of each batch, in order."""


class Pictures:
    """Of one run; reads its examples once."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._images: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def write(
        self, step: int, variables: Any, split: str, rows: Rows, log: Any
    ) -> None:
        """Give the log of the first process what there is to see.

        Args:
          variables: that were evaluated.  rows: of the evaluation.
        """
        if not is_first():
            return
        images, histograms = {}, _histograms(self._experiment.model, variables)
        if rows and rows[0]:
            whole = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
            images = self._drawn(split, whole)
            counted = whole["counted"]
            histograms["probability"] = whole["probability"][counted]
        log.show(step, images, histograms)

    def _drawn(self, split: str, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        task, counted = self._experiment.task, rows["counted"]
        names = [printable(name) for name in task.class_names()]
        labels, answers = rows["label"], rows["answer"]
        found = {
            "confusion": pictures.confusion(labels[counted], answers[counted], names)
        }
        # Where rows that do not count are left out, others have moved up.
        if len(labels) >= len(task.source(split)):
            if split not in self._images:
                self._images[split] = _examples(task, split)
            numbers, examples = self._images[split]
            found["examples"] = pictures.guesses(
                examples,
                [names[i] for i in labels[numbers]],
                [names[i] for i in answers[numbers]],
                rows["probability"][numbers].tolist(),
            )
        return found


def _examples(task: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the examples that are shown, and their images."""
    size = len(task.source(split))
    numbers = np.unique(np.arange(EXAMPLES) * size // EXAMPLES)
    return numbers, task.images(split, numbers)


def _histograms(model: Any, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Batch statistics of each norm, and lam over the norms that have one."""
    stats = jax.device_get(variables.get(BATCH_STATS, {}))
    flat: Any = flatten_dict(split_layers(stats, scanned_of(model)), sep="/")
    found = {
        f"statistics/{path}": np.asarray(value, np.float32)
        for path, value in flat.items()
        if path.rpartition("/")[2] in ("mean", "var")
    }
    counts = [v for path, v in flat.items() if path.rpartition("/")[2] == COUNTER]
    norm: Any = getattr(getattr(model, "host", model), "norm", None)
    module = norm and norm(parent=None)
    if counts and hasattr(module, "weight"):
        found["lam"] = np.asarray(module.weight(np.stack(counts)))
    return found
