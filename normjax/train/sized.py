"""The programs of a run whose batches grow, of the size that they have."""

from typing import Any

from normjax.train.experiment import Experiment
from normjax.train.growth import parts_for
from normjax.train.phases import Phase, TrainStep
from normjax.train.programs import jit_measure


class Sized:
    """The step for batches of one size, and the test whether that is enough.

    Args:
      parts: batches of the data that one is made of.
      phase: of the step, of one part; any.

    Attributes:
      experiment: with batches of that size.  train_step: to be closed.
    """

    def __init__(self, experiment: Experiment, parts: int, phase: Phase | None = None):
        self.parts, self._rule = parts, experiment.config.batch_growth
        self.experiment = experiment.grown(parts) if parts > 1 else experiment
        self.train_step = TrainStep(self.experiment, phase if parts == 1 else None)
        self._measure = jit_measure(self.experiment)

    @property
    def units(self) -> int:
        """What a step is made of, counted."""
        e = self.experiment
        return e.config.batch_size * self.parts * e.task.units_per_row

    def test(self, state: Any, batch: Any, step: int) -> Any:
        """The test of the batch of the next update; None where none is due.

        Args:
          step: updates made.
        """
        rows = self.experiment.config.batch_size * self.parts
        due = self._rule.test and (step + 1) % self._rule.every == 0
        if not due or 2 * rows > self._rule.largest:
            return None
        return self._measure(state, batch)

    def wanted(self, required: float) -> int:
        """Parts of the next batch, which is no smaller.

        Args:
          required: rows.
        """
        rows = self.experiment.config.batch_size
        return max(self.parts, parts_for(required, rows, self._rule.largest))
