"""How well a run knows what it knows: calibration, before and behind temperature."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from normjax import calibration
from normjax.calibration.temperature import softmax
from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.paths import workdir_path
from normjax.devices.processes import is_first
from normjax.records import report
from normjax.train.experiment import Experiment
from normjax.train.programs import jit_labelled_answers

DIAGRAM = "reliability.png"
BINS = 15
COLUMNS = ("T", "NLL", "Brier", "ECE", "equal-mass ECE", "MCE", "class-wise ECE", "KS")


def check_fitted_on(experiment: Experiment, split: str, fitted_on: str) -> None:
    """A temperature is fitted to other examples than those that are scored.

    Raises:
      UserError: examples of the same, no such split, or a run of no images.
    """
    if experiment.config.task != "image_classification":
        raise UserError(f"--temperature is for images, not {experiment.config.task}")
    if split == fitted_on:
        raise UserError(
            f"--temperature={fitted_on!r} is the split that is scored: name another, "
            "or slices, such as --temperature='test[:50%]' --split='test[50%:]'"
        )
    if experiment.task.source(fitted_on).meets(experiment.task.source(split)):
        raise UserError(f"--temperature={fitted_on!r} has examples of split {split!r}")


def show_calibration(
    experiment: Experiment, variants: Any, split: str, fitted_on: str, workdir: Path
) -> dict[str, dict[str, float]]:
    """Print errors of calibration by variant, as it is and at the fitted temperature.

    Draws reliability.png into the workdir.

    Args:
      variants: (model, variables) by name.
      split: to score.  fitted_on: where the temperature is fitted.

    Returns:
      The figures by row.

    Raises:
      UserError: there is no temperature, see `calibration.fit_temperature`.
    """
    rows, diagrams = {}, {}
    for name, (model, variables) in variants.items():
        held_out = _answers(experiment, model, variables, fitted_on)
        temperature = calibration.fit_temperature(*held_out)
        logits, labels = _answers(experiment, model, variables, split)
        for t in (1.0, temperature):
            title = name if t == 1.0 else f"{name}, scaled"
            rows[title], diagrams[title] = _figures(logits / t, labels, t)
    title = f"calibration on {split}, {BINS} bins; T fitted on {fitted_on}"
    shown = [(name, *row.values()) for name, row in rows.items()]
    report.table(title, ("model", *COLUMNS), shown)
    if is_first():
        path = workdir_path(workdir) / DIAGRAM
        calibration.draw_reliability(diagrams, path)
        console.print(f"drawn: {path}")
    return rows


def _figures(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[dict[str, float], calibration.Reliability]:
    p = softmax(logits)
    pair = calibration.confidence_and_hits(p, labels)
    bins = calibration.reliability(*pair, BINS)
    edges = calibration.equal_mass_edges(pair[0], min(BINS, len(p)))
    values = (
        temperature,
        calibration.negative_log_likelihood(logits, labels),
        calibration.brier_score(p, labels),
        calibration.expected_error(bins),
        calibration.expected_error(calibration.reliability(*pair, edges)),
        calibration.maximum_error(bins),
        calibration.classwise_error(p, labels, BINS),
        calibration.kolmogorov_smirnov_error(*pair),
    )
    return dict(zip(COLUMNS, values, strict=True)), bins


def _answers(
    experiment: Experiment, model: Any, variables: Any, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """float64 logits [N, K] and labels [N] of a split."""
    answers, found = jit_labelled_answers(experiment, model), []
    for batch in experiment.eval_batches(split):
        logits, counted, labels = jax.device_get(answers(variables, batch))
        found.append((logits[counted].astype(np.float64), labels[counted]))
    logits, labels = zip(*found, strict=True)
    return np.concatenate(logits), np.concatenate(labels)
