"""A run that learns from its own predictions of the last epoch (PS-KD)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.collections import TRAINING
from normjax.core.errors import UserError
from normjax.core.moments import at_least_float32
from normjax.tasks import SelfDistilled, Task, progressive_weight
from normjax.train.rule import Rule, apart, check_whole

NUMBER, WEIGHT = "example", "own_weight"
"""Of a row: number of its example, and how much of its target is the model's own."""


class SelfDistillation(Rule):
    """Targets are mixed with what the model gave for the example one epoch before.

    The weight grows with the epoch, from `weight` / E to `weight` (Kim et al., 2021).
    The memory is a table of all examples, float32 [examples, classes], 0 where there is
    no prediction yet.

    Args:
      config: of the run.  task: with its data.

    Raises:
      UserError: what does not go with it.
    """

    def __init__(self, config: Any, task: Task):
        check_whole("self_distill", config)
        for field in ("mixup_alpha", "cutmix_alpha"):
            if config.data.get(field):
                raise UserError(
                    f"config.self_distill does not go with config.data.{field}: a "
                    "prediction of two images is of neither"
                )
        self._last = config.self_distill.weight
        self._batch, self._total = config.batch_size, config.total_steps
        self._task = task

    def objective(self, own):
        return SelfDistilled(own)

    def model(self, model):
        return Remembering(model)

    def memory(self, variables):
        count = self._task.examples()
        if count is None:
            return None
        classes = self._task.model_arguments()["num_classes"]
        return jnp.zeros((count, classes), jnp.float32)

    def row(self):
        scalar = jax.ShapeDtypeStruct
        return {NUMBER: scalar((), jnp.int32), WEIGHT: scalar((), jnp.float32)}

    def rows(self, number, batch, ours):
        count = self._task.examples() or 1
        epochs = -(-self._total * self._batch // count)
        epoch = (number * self._batch + np.arange(self._batch)) // count
        weight = np.asarray(progressive_weight(epoch, epochs, self._last))
        numbers = self._task.example_numbers(number)
        return {
            NUMBER: numbers[ours].astype(np.int32),
            WEIGHT: weight[ours].astype(np.float32),
        }


class Remembering(NamedTuple):
    """A model that gives (logits, what it gave for the examples the last time).

    In its place wherever only `apply` is called.

    Attributes:
      model: anything with the `apply` of a Flax module.
    """

    model: Any

    def apply(self, variables: dict[str, Any], x: Any, **arguments: Any) -> Any:
        """As `model.apply`, of logits; `example`, int32 [B], says which they are of."""
        numbers, (table, rest) = arguments.pop(NUMBER), apart(variables, arguments)
        logits, new = self.model.apply(rest, x, **arguments)
        probabilities = jax.lax.stop_gradient(
            jax.nn.softmax(at_least_float32(logits), axis=-1)
        )
        changed = with_rows(table, numbers, probabilities)
        return (logits, table[numbers]), {**new, TRAINING: changed}


def with_rows(table: jax.Array, numbers: jax.Array, rows: jax.Array) -> jax.Array:
    """`table` with other rows; of two of one number the last.

    Args:
      table: [N, K].  numbers: int [B].  rows: [B, K].
    """
    same = numbers[:, None] == numbers[None, :]
    later = jnp.any(jnp.triu(same, 1), axis=1)
    where = jnp.where(later, len(table), numbers)  # out of the table: left out
    return table.at[where].set(rows.astype(table.dtype), mode="drop")
