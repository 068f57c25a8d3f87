"""Losses and gradients that are not finite: stop, skip the update, or roll back.

- "stop": the run ends; its last checkpoint is of before. The same command again comes
  to the same step by the same way.
- "skip": the step leaves parameters, statistics and optimizer as they were.
- "roll_back": the last checkpoint is restored, and the batches from there to the one
  that failed are left out.

In every case the batch is kept in `failures/step-N` of the workdir.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from normjax.core.console import console
from normjax.core.files import exists, reason, whole_file, write
from normjax.core.paths import is_local, workdir_path
from normjax.devices.processes import from_first, is_first
from normjax.records import report
from normjax.records.checkpoint import RunFailed
from normjax.records.json_files import read_json
from normjax.train.config import nonfinite_policy
from normjax.train.experiment import Experiment
from normjax.train.growth import Numbers
from normjax.train.step import BAD_GRADIENT, SKIPPED

FAILURES, ROLLBACKS = "failures", "rollbacks.json"

_SHOWN = 8  # example numbers in a message


class NonFiniteLoss(RunFailed):
    """Training diverged; the last checkpoint is untouched."""


class Failure(Exception):
    """The run is to roll back.

    Attributes:
      step: whose loss or gradient is not finite.
    """

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Window(NamedTuple):
    """Batches that are left out.

    Attributes:
      step: from which on batches have higher numbers.  batches: how many are left out.
    """

    step: int
    batches: int


class Guard:
    """Watches the metrics of a run, and knows which batches it has left out.

    What it decides is the same in all processes: it depends on metrics and files.

    Args:
      numbers: of the batches of the run, see `growth`.
      step: of the state that the run begins with.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, numbers: Numbers, step: int
    ):
        self.numbers = numbers
        self._experiment, self._workdir = experiment, workdir_path(workdir)
        self._policy, self._limit = nonfinite_policy(experiment.config)
        windows = [Window(*window) for window in from_first(_read(workdir))]
        self._windows = [w for w in windows if w.step <= step]
        self._rollbacks, self._skipped = len(self._windows), 0
        if self._policy == "skip":
            self._skipped = from_first(_skipped_before(workdir, step))

    def batch(self, step: int) -> int:
        """Number of the (first) batch that the update after `step` updates takes."""
        return self.numbers.first(step) + sum(w.batches for w in self._windows)

    def check(
        self, step: int, values: dict[str, float], state: Any, newest: int | None
    ) -> tuple[dict[str, float], bool]:
        """The metrics of a step that are worth a record, and whether they need one.

        Args:
          step: that the metrics are of.  values: the metrics.
          state: of this step or later.  newest: the last checkpoint.

        Raises:
          Failure: roll back.
          NonFiniteLoss: stop, because of the policy or its limit.
        """
        gradient = int(values.pop(BAD_GRADIENT))
        skipped = bool(values.pop(SKIPPED, 0))
        wrong = [n for n in ("loss", "grad_norm") if not math.isfinite(values[n])]
        if self._policy == "skip":
            self._skipped += skipped
            values[SKIPPED] = float(self._skipped)
        if not wrong:
            return values, False
        line = self._record(step, wrong[0], values[wrong[0]], gradient, state, newest)
        done = self._skipped - 1 if skipped else self._rollbacks
        if self._policy == "stop" or done >= self._limit:
            spent = "" if self._policy == "stop" else self._describe_limit()
            raise NonFiniteLoss(line + spent)
        console.print(f"warning: {line}", soft_wrap=True)
        if self._policy == "roll_back":
            raise Failure(step)
        return {k: v for k, v in values.items() if math.isfinite(v)}, True

    def roll_back(self, failed: int, step: int, numbers: Numbers) -> dict[str, float]:
        """Leave out the batches between a restored state and a step that failed.

        Args:
          failed: the step.  step: of the state.  numbers: from there on.

        Returns:
          what to record.
        """
        self._rollbacks += 1
        self._windows = [w for w in self._windows if w.step <= step]
        count = self.numbers.first(failed) - self.numbers.first(step)
        self._windows.append(Window(step, count))
        self.numbers = numbers
        if is_first():
            windows = json.dumps([w._asdict() for w in self._windows])
            write(self._workdir / ROLLBACKS, windows.encode())
        return {"rolled_back_from": failed, "batches_left_out": count}

    def _describe_limit(self) -> str:
        return f"; config.nonfinite.limit is {self._limit} ({self._policy})"

    def _record(self, step, name, value, gradient, state, newest) -> str:
        """Keep the batch and what is known; the same in one line."""
        e, number = self._experiment, self.batch(step - 1)
        parts = self.numbers.parts(step - 1)
        examples = [
            int(n)
            for part in range(number, number + parts)
            for n in e.task.example_numbers(part)
        ]
        known = {
            "step": step,
            name: str(value),
            "batch": number,
            "seed": e.config.seed,
            "examples": examples,
            "first_bad_gradient": _name(state.params, gradient),
            "first_bad_value_in_state": _first_bad(state),
            "newest_checkpoint": newest,
        }
        folder = self._workdir / FAILURES / f"step-{step}"
        try:
            if is_local(folder):
                folder.mkdir(parents=True, exist_ok=True)
            rows: Any = e.grown(parts).batch(number)
            with whole_file(folder / f"batch-{jax.process_index()}.npz") as file:
                np.savez(file, **rows)
            if is_first():
                write(folder / "failure.json", json.dumps(known, indent=2).encode())
            kept = f"batch in {folder}"
        except OSError as error:
            kept = f"batch not kept: {reason(error)}"
        shown = " ".join(map(str, examples[:_SHOWN]))
        shown += f" and {len(examples) - _SHOWN} more" if examples[_SHOWN:] else ""
        return (
            f"{name} is {value} at step {step} (batch {number} of seed "
            f"{e.config.seed}: examples {shown}); first gradient that is not finite: "
            f"{known['first_bad_gradient']}; first value of the state: "
            f"{known['first_bad_value_in_state']}; newest good checkpoint: {newest}; "
            f"{kept}"
        )


def _read(workdir: Path) -> list[Window]:
    path = workdir_path(workdir) / ROLLBACKS
    return [Window(**w) for w in read_json(path)] if exists(path) else []


def _skipped_before(workdir: Path, step: int) -> int:
    records = [r for r in report.read_metrics(workdir) if r["step"] <= step]
    return int(max((r.get(SKIPPED, 0) for r in records), default=0))


def _name(tree: Any, index: int) -> str:
    """The path of one array; "none" for index -1."""
    if index < 0:
        return "none"
    path, _ = jax.tree_util.tree_leaves_with_path(tree)[index]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _first_bad(state: Any) -> str:
    """The first parameter that is not finite, or else the first statistic."""
    tree = {"params": state.params, "state": state.model_state}
    for index, x in enumerate(jax.tree.leaves(tree)):
        if not jax.numpy.isfinite(x).all():
            return _name(tree, index)
    return "none"
