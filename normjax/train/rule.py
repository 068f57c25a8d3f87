"""What a run trains on besides its examples and their labels: one rule at most."""

from typing import Any

import jax
import numpy as np

from normjax.core.collections import TRAINING
from normjax.core.errors import UserError
from normjax.tasks import Objective


class Rule:
    """A run of examples and labels; subclasses say what is otherwise.

    Nothing of it is left at evaluation.
    """

    def objective(self, own: Objective) -> Objective:
        """What is minimised, around that of the task."""
        return own

    def model(self, model: Any) -> Any:
        """Anything with an `apply`, that is trained in the place of `model`."""
        return model

    def begin(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The variables of a model, with parameters that only training has."""
        return variables

    def memory(self, variables: dict[str, Any]) -> Any:
        """`TrainState.memory` before the first update, or None."""
        del variables
        return None

    def row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What a row of a batch has besides."""
        return {}

    def rows(
        self, number: int, batch: dict[str, Any], ours: slice
    ) -> dict[str, np.ndarray]:
        """The same of this process's rows of a batch.

        Args:
          number: of the batch.  batch: its rows of this process, on the host.
          ours: which of its rows they are.
        """
        del number, batch, ours
        return {}


MEMORIES = ("self_distill.weight", "adversarial.epsilon")
"""Fields that ask for a rule with a memory, where they are not 0."""


def check_whole(name: str, config: Any) -> None:
    """Raise UserError where a rule that carries a memory cannot be followed.

    Args:
      name: of its section.
    """
    image = "image_classification"
    wrong = {
        f"config.task={config.task!r}": config.task != image,
        "config.parallelism='pmap'": config.parallelism == "pmap",
        f"config.microbatches={config.microbatches}": config.microbatches > 1,
        "config.batch_growth.test": bool(config.batch_growth.test),
        "config.data.repeats": config.data.get("repeats", 1) > 1,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"config.{name} does not go with {what}")


def apart(variables: dict[str, Any], arguments: dict[str, Any]) -> tuple[Any, Any]:
    """(memory, variables of the model); `arguments["mutable"]` loses the memory."""
    rest = {name: v for name, v in variables.items() if name != TRAINING}
    arguments["mutable"] = [n for n in arguments["mutable"] if n != TRAINING]
    return variables[TRAINING], rest
