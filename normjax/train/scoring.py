"""The scores of a run: of its states now and then, and of what it ends with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from normjax.core.collections import BATCH_STATS
from normjax.devices.processes import from_first, is_first
from normjax.devices.signals import Stopped
from normjax.records import report
from normjax.records.checkpoint import Checkpoints
from normjax.train.experiment import Experiment
from normjax.train.pictures import Pictures
from normjax.train.programs import jit_noted_step
from normjax.train.recalibrate import (
    COUNT,
    forget,
    keep_progress,
    progress,
    recalibrate,
)
from normjax.train.state import TrainState

Scores = dict[str, float]


class Scoring:
    """Evaluates states of a run and keeps their scores with its log and checkpoints.

    Args:
      watch: batches, until a signal raises Stopped.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        checkpoints: Checkpoints,
        watch: Callable[[Iterator], Iterator],
    ):
        self._experiment, self._workdir = experiment, workdir
        self._checkpoints, self._watch = checkpoints, watch
        self._config = experiment.config
        self._step, self._pictures = jit_noted_step(experiment), Pictures(experiment)
        self._seen: tuple[Any, str, list[Any]] | None = None
        self._rank, self._ranks = experiment.task.ranking(), list[float]()

    def evaluate(
        self, state: TrainState, log: Any = None, prefix: str = "eval_", split: str = ""
    ) -> Scores:
        """The scores of `state` on a split, by default the config's `eval_split`.

        Args:
          log: gets them, under `prefix`, and what there is to see.
        """
        e, split = self._experiment, split or self._config.data.eval_split
        variables, rows = state.eval_variables(), list[Any]()
        scores = e.evaluate(self._step, variables, split, self._watch, rows.append)
        self._seen = variables, split, rows
        if log is not None:
            step = int(state.step)
            log.write(step, {prefix + name: value for name, value in scores.items()})
            self._pictures.write(step, variables, split, rows, log)
            self._ranks.append(self._rank(scores))
        return scores

    def remember(self, step: int) -> None:
        """Take the evaluations up to a step from the log, for `stalled`."""
        records = report.read_metrics(self._workdir) if is_first() else []
        kept = [
            {k.removeprefix("eval_"): v for k, v in record.items()}
            for record in records
            if record["step"] <= step and any(k.startswith("eval_") for k in record)
        ]
        self._ranks = from_first([self._rank(scores) for scores in kept])

    @property
    def stalled(self) -> bool:
        """Whether as many evaluations as `config.patience` brought no better score."""
        patience, ranks = self._config.get("patience", 0), self._ranks
        if not patience or not ranks:
            return False
        return len(ranks) - 1 - ranks.index(max(ranks)) >= patience

    def catch_up(self, state: TrainState, log: Any) -> None:
        """The evaluation of the step of `state`, if a signal came before its end."""
        config, step = self._config, int(state.step)
        due = 0 < step < config.total_steps and not step % config.eval_every
        if due and not self._is_logged(step):
            scores = self.evaluate(state, log)
            if step % config.checkpoint.every == 0:
                self._checkpoints.replace(state, scores)

    def finish(self, state: TrainState, log: Any, batch: int) -> dict[str, Scores]:
        """Recalibrate, evaluate and save the last state.

        Args:
          batch: number of the first that recalibration takes.

        Returns:
          scores by split, and those "before recalibration".
        """
        rows, found, config, step = {}, {}, self._config, int(state.step)
        fresh = self._checkpoints.latest() != step
        if fresh:  # before what takes long
            self._checkpoints.save(state)
        # The scores are what a run that has ended wrote last.
        ended = not fresh and self._checkpoints.is_scored(step)
        has_stats = BATCH_STATS in state.model_state
        if not ended and has_stats and config.recalibrate_batches:
            rows["before recalibration"] = self.evaluate(state)
            found["before_recalibration_"] = rows["before recalibration"]
            state = self._recalibrated(state, batch)
        scores = rows[config.data.eval_split] = found["eval_"] = self.evaluate(state)
        seen = self._seen
        if config.data.test_split:
            test = self.evaluate(state, split=config.data.test_split)
            rows[config.data.test_split] = found["test_"] = test
        if not ended:
            for prefix, values in found.items():
                if not self._is_logged(step, prefix):
                    log.write(step, {prefix + k: v for k, v in values.items()})
            if seen:
                variables, split, given = seen
                self._pictures.write(step, variables, split, given, log)
            self._checkpoints.replace(state, scores)
            forget(self._workdir)
        return rows

    def _is_logged(self, step: int, prefix: str = "eval_") -> bool:
        """Whether the log has the evaluation of a step."""
        records = report.read_metrics(self._workdir) if is_first() else []
        names = (name for r in records if r["step"] == step for name in r)
        return bool(from_first(any(name.startswith(prefix) for name in names)))

    def _recalibrated(self, state: TrainState, batch: int) -> TrainState:
        """`state`, recalibrated from where a signal stopped it, if one did."""
        e, sums = self._experiment, progress(self._workdir)
        done = int(sums.get(COUNT, 0))
        count = self._config.recalibrate_batches - done
        batches = self._watch(first(e.train_batches(batch + done), count))
        variables, objective = state.eval_variables(), e.task.objective
        try:
            stats = recalibrate(e.placed(), variables, batches, objective, sums)
        except Stopped:
            keep_progress(self._workdir, sums)
            raise
        shardings = e.shardings.model_state[BATCH_STATS]
        stats = jax.jit(lambda stats: stats, out_shardings=shardings)(stats)
        return state.with_eval_stats(stats)


def first(batches: Any, count: int) -> Iterator:
    """The first `count` batches; closes the source."""
    try:
        for _ in range(count):
            yield next(batches)
    finally:
        batches.close()
