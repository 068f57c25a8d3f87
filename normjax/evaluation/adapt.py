"""Adapt a finished run's model to a stream of images that it was not trained for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from normjax import data
from normjax.adapt import ADAPTATIONS
from normjax.config.overrides import Override
from normjax.core.compiler import jit
from normjax.core.console import console
from normjax.core.errors import UserError, one_of
from normjax.data import order
from normjax.data.corrupt import corrupt
from normjax.devices.mesh import on_these_devices
from normjax.evaluation.run import restored
from normjax.records import report
from normjax.records.datasets import check_classes
from normjax.tasks.classification import metric_sums, summarize
from normjax.train.config import kept_config
from normjax.train.experiment import build_experiment

READS = ("data",)
"""Sections of a config that adaptation makes use of."""

STREAMS = ("iid", "correlated")


class Stream(NamedTuple):
    """What comes, and in which order.

    Attributes:
      split: of the data set; "" for the config's `eval_split`.
      corruption: key of `data.corrupt.STRENGTHS`, or "".  severity: 1 to 5.
      order: "iid", or "correlated": one class after the other, as a worst case.
      batch_size: images a step.
      images: how many, chosen by the config's seed; 0 for all.
    """

    split: str = ""
    corruption: str = ""
    severity: int = 5
    order: str = "iid"
    batch_size: int = 64
    images: int = 0


def adapt_run(
    workdir: Path,
    names: Sequence[str],
    stream: Stream,
    *,
    best: bool = False,
    overrides: Sequence[Override] = (),
) -> dict[str, dict[str, float]]:
    """Print and return the scores of a checkpoint as it is and adapted.

    Adaptations see the images of a batch and those before, no labels.

    Args:
      names: keys of `adapt.ADAPTATIONS`.
      best, overrides: as of `evaluate_run`.

    Raises:
      UserError: an unknown name, no run in `workdir`, or a run that is no image
        classification.
    """
    methods = {name: ADAPTATIONS[name].make() for name in ("source", *names)}
    if stream.order not in STREAMS:
        raise UserError(one_of("stream", stream.order, STREAMS))
    config = on_these_devices(kept_config(workdir, overrides, READS))
    if config.task != "image_classification":
        why = f"need a run on images, not of task {config.task!r}"
        raise UserError(f"--adapt and --corruption {why}")
    split = stream.split or config.data.eval_split
    with config.unlocked():  # no other split need be there
        config.data.update(train_split="", eval_split=split, test_split="")
    experiment = build_experiment(config)
    check_classes(experiment.task, workdir)
    state = restored(experiment, workdir, best=best)
    variables = jax.tree.map(jnp.asarray, jax.device_get(state.eval_variables()))
    scores = {}
    for name, method in methods.items():
        step = jit(_step_of(experiment, method))
        state, sums = method.start(variables), {}
        for batch in _shown(experiment, stream, name):
            new, state = step(variables, state, batch)
            for key, value in jax.device_get(new).items():
                sums[key] = sums.get(key, 0) + np.asarray(value, np.float64)
        scores[name] = summarize(sums)
    what = f"{stream.corruption} {stream.severity}" if stream.corruption else "clean"
    title = f"{workdir}, {what}, {stream.order}"
    report.score_table(title, "adaptation", experiment.task.columns, scores)
    return scores


def _step_of(experiment: Any, method: Any) -> Any:
    """(variables, state, batch) -> (sums of the metrics, state)."""
    model, objective = experiment.model, experiment.task.objective

    def step(variables, state, batch):
        x, _ = objective.inputs(batch)
        logits, state = method.predict(model.apply, variables, state, x)
        everything = jnp.ones(len(x), bool)
        return metric_sums(logits, batch["label"], everything), state

    return step


def _shown(experiment: Any, stream: Stream, name: str) -> Any:
    """The batches, with a progress bar on a terminal."""
    source = experiment.task.source(stream.split or experiment.config.data.eval_split)
    images = min(stream.images or len(source), len(source))
    return track(
        _batches(experiment, stream),
        name,
        total=-(-images // stream.batch_size),
        console=console,
        disable=not console.is_terminal,
    )


def _batches(experiment: Any, stream: Stream) -> Iterator[dict[str, np.ndarray]]:
    """The images in the order of the stream; the last batch may be smaller."""
    config = experiment.config
    source = experiment.task.source(stream.split or config.data.eval_split)
    rows = source.rows(data.augment.build(config.data.augment, train=False))
    indices = order.permutation(config.seed, 0, len(rows))[: stream.images or None]
    if stream.order == "correlated":
        labels = np.array([source.read(int(i))[1] for i in indices])
        indices = indices[np.argsort(labels, kind="stable")]
    for step, start in enumerate(range(0, len(indices), stream.batch_size)):
        own = indices[start : start + stream.batch_size]
        batch = rows.load(own, np.empty((len(own), 0)))
        if stream.corruption:
            u = order.uniforms(config.seed, step, len(own), 1)
            given = {"kind": stream.corruption, "severity": stream.severity}
            batch["image"] = corrupt(batch["image"], u, **given)
        yield batch
