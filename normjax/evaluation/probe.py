"""What the features of a frozen model tell of classes: k-NN and a linear probe."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from normjax.config.overrides import Override, override
from normjax.core.errors import UserError
from normjax.devices.mesh import on_these_devices
from normjax.evaluation.published import published_model
from normjax.evaluation.run import READS, restored
from normjax.records.datasets import kept_description
from normjax.tasks import TASKS
from normjax.train.config import kept_config
from normjax.train.experiment import build_experiment

TEMPERATURE = 0.07
"""Of the votes of neighbours (Wu et al., 2018)."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""C of logistic regression, of which a fifth of the training features chooses."""


class Frozen(NamedTuple):
    """A model that stays as it is, with the config of its data.

    Attributes:
      config: of the run, with the data to read.  title: what it is.
    """

    title: str
    model: Any
    variables: Any
    config: Any


class Features(NamedTuple):
    """What goes into the head: float32 [N, D], and labels int [N]."""

    values: np.ndarray
    labels: np.ndarray


def of_run(
    workdir: Path,
    folder: str = "",
    *,
    best: bool = False,
    overrides: Sequence[Override] = (),
) -> Frozen:
    """That of a run, on its data or on those of an image folder.

    Raises:
      UserError: no run in `workdir`, or one that does not classify images.
    """
    config = on_these_devices(kept_config(workdir, overrides, READS))
    if config.task != "image_classification":
        raise UserError(f"workdir {workdir} is a run of {config.task}, not of images")
    described = kept_description(config.task, workdir)
    experiment = build_experiment(config, described=described)
    variables = restored(experiment, workdir, best=best).eval_variables()
    variables = jax.device_put(jax.device_get(variables))
    return Frozen(str(workdir), experiment.model, variables, _on(config, folder))


def of_weights(preset: str, path: Path, folder: str, **how: Any) -> Frozen:
    """That of published weights; `how` is as of `published_model`."""
    found = published_model(preset, path, **how)
    variables = jax.device_put(found.converted.variables)
    config = _on(found.config, folder)
    return Frozen(f"{preset}, {path}", found.model, variables, config)


def _on(config: Any, folder: str) -> Any:
    """`config` with the images of a folder, if one is given."""
    if not folder:
        return config
    fields = {"name": "image_folder", "path": folder, "train_split": "train"}
    fields |= {"eval_split": "test", "test_split": ""}
    return override(config, [Override(f"data.{k}", v) for k, v in fields.items()])


def probe(frozen: Frozen, neighbors: Sequence[int], split: str) -> dict[str, float]:
    """Top-1 of each probe by its name: trained on the training split, without
    augmentation, tested on `split`.

    Raises:
      UserError: data that cannot be read, or more neighbours than training images.
    """
    only = [Override("data.eval_split", split), Override("data.test_split", "")]
    task = TASKS[frozen.config.task].make(override(frozen.config, only))
    splits = frozen.config.data.train_split, split
    compiled = features(frozen, task.objective)
    train, test = (features_of(frozen, task, split, compiled) for split in splits)
    if max(neighbors, default=0) > len(train.labels):
        count = len(train.labels)
        raise UserError(f"{max(neighbors)} neighbors of {count:,} training images")
    found = {f"k-NN, k = {k}": nearest(train, test, k) for k in neighbors}
    strength, score = linear(train, test)
    return {**found, f"linear, C = {strength:g}": score}


def features(frozen: Frozen, objective: Any) -> Any:
    """(variables, batch) -> what goes into the head of the model."""

    @jax.jit
    def read(variables, batch):
        found = []

        def note(call, args, kwargs, context):
            if context.module.path == ("head",) and context.method_name == "__call__":
                found.append(args[0])
            return call(*args, **kwargs)

        x, known = objective.inputs(batch)
        with nn.intercept_methods(note):
            frozen.model.apply(variables, x, train=False, **known)
        return found[0].astype(np.float32)

    return read


def features_of(frozen: Frozen, task: Any, split: str, compiled: Any) -> Features:
    """What goes into the head of the model, of every image of a split.

    Args:
      compiled: of `features`, one for all splits.
    """
    rows = frozen.config.batch_size
    batches: Iterable[Any] = task.eval_batches(
        split, batch_size=rows, process_index=0, process_count=1
    )
    values, labels = [], []
    for batch in batches:
        real = np.asarray(batch["mask"])
        values.append(np.asarray(compiled(frozen.variables, batch))[real])
        labels.append(np.asarray(batch["label"])[real])
    return Features(np.concatenate(values), np.concatenate(labels))


def nearest(train: Features, test: Features, k: int) -> float:
    """Accuracy of votes of the k nearest by cosine, exp(similarity / temperature)."""
    from sklearn.neighbors import KNeighborsClassifier

    def votes(distances):
        return np.exp((1 - distances) / TEMPERATURE)

    weights: Any = votes  # a function, which the stubs of scikit-learn do not know
    voters = KNeighborsClassifier(k, metric="cosine", weights=weights)
    return float(voters.fit(*train).score(*test))


def linear(train: Features, test: Features) -> tuple[float, float]:
    """(C, accuracy) of logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(strength, x, y):
        probe = LogisticRegression(C=strength, max_iter=2000)
        return make_pipeline(StandardScaler(), probe).fit(x, y)

    strength = 1.0
    counts = np.unique(train.labels, return_counts=True)[1]
    if counts.min() >= 5:
        kept, held, kept_labels, held_labels = train_test_split(
            *train, test_size=0.2, stratify=train.labels, random_state=0
        )
        strength = max(
            STRENGTHS,
            key=lambda c: fitted(c, kept, kept_labels).score(held, held_labels),
        )
    return strength, float(fitted(strength, *train).score(*test))
