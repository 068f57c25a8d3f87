"""Evaluate a finished or running run, folded and unfolded."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from normjax import fusion
from normjax.config.overrides import Override
from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.timing import alternate
from normjax.devices.mesh import on_these_devices, replicated
from normjax.evaluation.calibrate import check_fitted_on, show_calibration
from normjax.records import report
from normjax.records.checkpoint import Checkpoints
from normjax.records.datasets import check_classes
from normjax.train.config import kept_config
from normjax.train.experiment import Experiment, build_experiment
from normjax.train.programs import jit_answers, jit_eval_step
from normjax.train.state import TrainState

LATENCY_ROUNDS = 30

Variants = dict[str, tuple[Any, Any]]
"""Models and their variables by name."""

READS = ("data", "mesh", "sharding", "batch_size")
"""Sections and fields of a config that evaluation makes use of."""


def evaluate_run(
    workdir: Path,
    *,
    split: str | None = None,
    fold: bool = False,
    best: bool = False,
    temperature: str = "",
    overrides: Sequence[Override] = (),
) -> dict[str, dict[str, float]]:
    """Print and return the metrics of a run's checkpoint on a split.

    Args:
      split: default: the config's `eval_split`.
      fold: evaluate the folded model as well; print what was folded, the sizes, the
        largest difference of a logit and the latency of both.
      best: the checkpoint with the best scores instead of the newest.
      temperature: split to fit a temperature on; then errors of calibration are
        printed and drawn, see `evaluation.calibrate`.
      overrides: of the run's config, as far as evaluation may differ from it.

    Raises:
      UserError: no run or no sound checkpoint in `workdir`, an unknown split, one that
        is scored and fitted on, or an override that is not allowed.
    """
    config = config_to_read(workdir, overrides)
    split = str(split or config.data.eval_split)
    with config.unlocked():  # no other split need be there
        config.data.update(train_split="", eval_split=split, test_split="")
    experiment = build_experiment(config)
    check_classes(experiment.task, workdir)
    if temperature:
        check_fitted_on(experiment, split, temperature)
    state = restored(experiment, workdir, best=best)
    scores, variants, _ = scores_of(
        experiment, state.eval_variables(), split, fold=fold
    )
    title = f"{workdir}, step {int(state.step)}, split {split}"
    show_scores(experiment, title, scores, variants, split)
    if temperature:
        show_calibration(experiment, variants, split, temperature, workdir)
    return scores


def scores_of(
    experiment: Experiment, variables: Any, split: str, *, fold: bool = False
) -> tuple[dict[str, dict[str, float]], Variants, dict[str, float]]:
    """The scores on a split by variant: folded, too, if asked for.

    Returns:
      the scores; the variants; and examples a second of each, 0 where one batch is all.
    """
    variants: Variants = {"unfolded": (experiment.model, variables)}
    if fold:
        variants = folded_variants(experiment, variables)
    scores, rates = {}, {}
    size = len(experiment.task.source(split)) - experiment.config.batch_size
    for name, (model, variables) in variants.items():
        eval_step = jit_eval_step(experiment, model if fold else None)
        started: list[float] = []
        watch = partial(_timed, started)
        scores[name] = experiment.evaluate(eval_step, variables, split, watch)
        rates[name] = max(0, size) / (time.perf_counter() - started[0])
    return scores, variants, rates


def folded_variants(experiment: Experiment, variables: Any) -> Variants:
    """The model as it is and folded, on all devices; prints what is folded where."""
    everywhere = replicated(experiment.mesh)
    whole = jax.jit(lambda v: v, out_shardings=everywhere)(variables)
    variants: Variants = {"unfolded": (experiment.model, whole)}
    _print_plan(fusion.plan(*variants["unfolded"]))
    with report.warnings_in_lines():
        folded, variables = fusion.fold(*variants["unfolded"])
    variants["folded"] = folded, jax.device_put(variables, everywhere)
    return variants


def _timed(started: list[float], batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; keeps when the second is asked for, after compilation."""
    yield next(batches)
    started.append(time.perf_counter())
    yield from batches


def show_scores(
    experiment: Experiment, title: str, scores: Any, variants: Variants, split: str
) -> None:
    """Print the scores of `scores_of`; of a folded model, what differs."""
    report.score_table(title, "model", experiment.task.columns, scores)
    if "folded" in variants:
        _print_comparison(experiment, variants, split)


def config_to_read(workdir: Path, overrides: Sequence[Override] = ()) -> Any:
    """The config of a run for a command that computes with its model here.

    Its mesh is that of the run, or along `data` where that cannot be; one of the
    overrides has to be possible.
    """
    config = kept_config(workdir, overrides, READS)
    chosen = any(one.field.startswith("mesh.") for one in overrides)
    return config if chosen else on_these_devices(config)


def restored(
    experiment: Experiment, workdir: Path, *, best: bool = False
) -> TrainState:
    """The newest sound state of a run, or the best.

    Raises:
      UserError: there is none.
    """
    checkpoints = Checkpoints(workdir, rank=experiment.task.ranking())
    try:
        like = experiment.abstract_state()
        step = checkpoints.best() if best else None
        if step is not None:
            return checkpoints.restore(step, like)
        state = None if best else checkpoints.restore_newest(like)
    finally:
        checkpoints.close()
    if state is None:
        what = "evaluated" if best else "complete"
        raise UserError(f"workdir {workdir} holds no {what} checkpoint")
    return state


def _print_plan(plan: list[fusion.Fold]) -> None:
    def where(f: fusion.Fold) -> str:
        rest = f"; {f.remains} stays" if f.remains else ""
        return f"{', '.join(f.into)}{rest}" if f.into else f"stays: {f.reason}"

    rows = [(f.path, f.norm, where(f)) for f in plan]
    report.table("norms", ("norm", "kind", "folded into"), rows)


def _print_sizes(experiment, variants) -> None:
    """What both models hold, and compute for one example."""
    row = {
        name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
        for name, x in experiment.task.row().items()
    }
    x, known = jax.eval_shape(experiment.task.objective.inputs, row)
    rows = [
        (name, *fusion.size_of(model, variables, x, **known))
        for name, (model, variables) in variants.items()
    ]
    columns = ("model", "parameters", "state", "multiply-adds", "operations")
    report.table("size, and work for one example", columns, rows)


def _print_comparison(experiment, variants, split: str) -> None:
    """Largest logit difference and equal predictions over the split; latency."""
    _print_sizes(experiment, variants)
    functions = {}
    for name, (model, variables) in variants.items():
        functions[name] = jit_answers(experiment, model), variables
    largest, equal, count, batch = 0.0, 0, 0, {}
    for batch in experiment.eval_batches(split):
        (a, real), (b, _) = jax.device_get([f(v, batch) for f, v in functions.values()])
        largest = max(largest, float(np.abs(a - b)[real].max(initial=0.0)))
        equal += int((a.argmax(-1) == b.argmax(-1))[real].sum())
        count += int(real.sum())
    calls = {name: partial(f, v, batch) for name, (f, v) in functions.items()}
    latency = alternate(calls, LATENCY_ROUNDS)
    rows = [(name, 1e3 * t) for name, t in latency.items()]
    columns = ("model", f"ms a batch of {len(jax.tree.leaves(batch)[0])}")
    report.table("latency (median)", columns, rows)
    console.print(
        f"largest logit difference {largest:.2e}; "
        f"equal predictions {equal} of {count}; latency folded / unfolded "
        f"{latency['folded'] / latency['unfolded']:.3f}"
    )
