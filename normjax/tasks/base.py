"""What all tasks have in common, and the registry of them."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from normjax import data
from normjax.core.errors import UserError, one_of
from normjax.core.registry import Registry
from normjax.data import order

TASKS = Registry("task")
"""The tasks by key, `config.task`: a row has `name` and `make`, the class.

Example:
  >>> from normjax.tasks import TASKS
  >>> "language_modeling" in TASKS, TASKS["language_modeling"].make.__name__
  (True, 'LanguageModeling')
"""

Batch = Mapping[str, jax.Array]
Inputs = tuple[Any, dict[str, Any]]
"""What a model is called with: its first argument, and keyword arguments."""


def percent(fraction: float) -> str:
    """0.98611 -> "98.61 %"."""
    return f"{100 * fraction:.2f} %"


def row_of(rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a row of a `data` source that makes its rows itself."""
    return {
        name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        for name, x in rows.blank(1).items()
    }


class Column(NamedTuple):
    """A score as people see it.

    Attributes:
      score: its name.  title: of the column.  show: value to cell.
      less: whether less of it is better.

    Example:
      >>> from normjax.tasks import Column, ImageClassification
      >>> ImageClassification.columns[0].score
      'top1'
      >>> column = Column("top1", "top-1", show=lambda score: f"{100 * score:.1f} %")
      >>> column.show(0.986)
      '98.6 %'
    """

    score: str
    title: str
    show: Callable[[float], Any] = float
    less: bool = False


class Objective(Protocol):
    """What is computed on the device, of a whole batch; pure functions, to be jitted.

    Outputs are what the model returns: one array [B, ...], or a tree of such arrays.
    Where the loss is no mean over the rows, as it compares them with each other, the
    objective has an attribute `compares_rows` that is true.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import NextToken, Objective
      >>> objective: Objective = NextToken()
      >>> batch = {"tokens": jnp.array([[2, 0]]), "targets": jnp.array([[0, 1]])}
      >>> batch["weights"] = jnp.ones((1, 2))
      >>> (tokens, known), targets = objective.examples(batch, jax.random.key(0))
      >>> loss, scalars = objective.loss(jnp.zeros((1, 2, 4)), targets)
      >>> print(loss.round(3), sorted(scalars))  # log(4)
      1.386 ['accuracy']
    """

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs and targets of training; both are trees of arrays [B, ...].

        What is ragged is padded, with its lengths beside it.
        """
        ...

    def loss(
        self, outputs: Any, targets: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and further scalars, all means over the rows."""
        ...

    def inputs(self, batch: Batch) -> Inputs:
        """Inputs of evaluation."""
        ...

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B], the rows of evaluation in which anything counts; the others fill
        the batch up."""
        ...

    def answers(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What is answered, as logits [..., K], and which answers count: bool [...]."""
        ...

    def sums(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the scores are made of, summed over what counts, or `scores.Gathered`;
        decoding, where outputs have to be decoded, is part of it."""
        ...


def compares_rows(objective: Objective) -> bool:
    """Whether the loss of a batch is another one than the mean over its parts."""
    return getattr(objective, "compares_rows", False)


@dataclasses.dataclass(frozen=True)
class Around:
    """An objective around another one: what it does not say is as of that.

    Attributes:
      own: the objective.

    Example:
      >>> from normjax.tasks import Around, NextToken
      >>> Around(NextToken(z_loss_weight=0.5)).own.z_loss_weight
      0.5
    """

    own: Objective

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, Any]:
        """Inputs and targets of training."""
        return self.own.examples(batch, key)

    def loss(self, outputs: Any, targets: Any):
        """The loss and further scalars."""
        return self.own.loss(outputs, targets)

    def inputs(self, batch: Batch) -> Inputs:
        """Those of evaluation."""
        return self.own.inputs(batch)

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]."""
        return self.own.rows(batch)

    def answers(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What is answered at evaluation, and which answers count."""
        return self.own.answers(outputs, batch)

    def sums(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """What the scores are made of."""
        return self.own.sums(outputs, batch)


class Task(abc.ABC):
    """One task as a config describes it.

    Attributes:
      objective: the part on the device.
      unit: what a row of a batch is made of, in plural.  units_per_row: how many.
      columns: the scores in tables.
      curves: the axes of the plot, (label, logarithmic, names of scalars).
      described_as: class of what stands for the data where they are not; None: they
        are made on the fly.
      stood_in: numbers of the training examples that were to come up in this process
        so far and could not be decoded; see `config.data.undecodable`.

    Example:
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import TASKS, Task
      >>> config = load_config("transduction")
      >>> task = TASKS[config.task].make(config)
      >>> isinstance(task, Task), task.describe()
      (True, 'reversed_case, 1,000,000 pairs of up to 16 letters')
      >>> task.model_arguments()
      {'vocab_size': 53}
    """

    objective: Objective
    unit: ClassVar[str]
    units_per_row: int = 1
    columns: ClassVar[tuple[Column, ...]]
    curves: ClassVar[tuple[tuple[str, bool, tuple[str, ...]], ...]]

    described_as: ClassVar[Any] = None

    def __init__(self, config: Any, described: Any = None):
        """Open the data set of `config.data` and check its fields.

        Args:
          described: what is known of it, of the class `described_as`; it is then not
            opened, and no batches come from it.

        Raises:
          UserError: a data set, split or field that is not allowed.
        """
        self._config, self._described = config, described
        self._sources: dict[str, Any] = {}
        self.stood_in: set[int] = set()
        # All at once: a wrong name must not wait for its use.
        fields = config.data
        if not fields.eval_split:
            raise UserError("config.data.eval_split is empty: name a split to evaluate")
        for split in filter(
            None, (fields.train_split, fields.eval_split, fields.get("test_split"))
        ):
            self.source(split)
        self.ranking()

    @property
    def main_split(self) -> str:
        """The split that tells what there is to know of the data: `train_split`, or
        `eval_split` where nothing is trained."""
        return self._config.data.train_split or self._config.data.eval_split

    def source(self, split: str) -> Any:
        """One split of the data set, opened once and kept."""
        if split not in self._sources:
            self._sources[split] = self._described or self._open(split)
        return self._sources[split]

    def digests(self) -> dict[str, dict[str, Any]]:
        """Number of examples, digest and order of every split that is open."""
        return {
            split: {
                "examples": len(source),
                "digest": source.digest,
                "order": order.name_of(len(source)),
            }
            for split, source in self._sources.items()
        }

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; empty without classes."""
        return ()

    def description(self) -> Any:
        """The `described_as` of the data that are open; None as there."""
        if self.described_as is None:
            return None
        source = self.source(self.main_split)
        fields = self.described_as._fields
        return self.described_as(*(getattr(source, name) for name in fields))

    @abc.abstractmethod
    def _open(self, split: str) -> Any:
        """The `data` source of one split."""

    @abc.abstractmethod
    def model_arguments(self) -> dict[str, Any]:
        """What the data fix of the model."""

    @abc.abstractmethod
    def row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one row of a training batch."""

    def example(self) -> Inputs:
        """What a model is called with, of one row of zeros."""
        row = {k: jnp.zeros((1, *x.shape), x.dtype) for k, x in self.row().items()}
        return self.objective.inputs(row)

    def train_batches(self, **arguments: Any) -> Iterator[dict[str, np.ndarray]]:
        """Endless; `arguments` of `data.train_batches` that the config does not fix."""
        fields = self._config.data
        source = self.source(fields.train_split)
        repeats = fields.get("repeats", 1)
        return data.train_batches(
            source, workers=fields.workers, repeats=repeats, **arguments
        )

    def examples(self) -> int | None:
        """Of the training split; None where it is not open."""
        split = self._config.data.get("train_split", "")
        return None if self._described or not split else len(self.source(split))

    def example_numbers(self, batch: int) -> np.ndarray:
        """The examples of the training split that a global batch is made of: [B]."""
        seed, rows = self._config.seed, self._config.batch_size
        source = self.source(self._config.data.train_split)
        repeats = self._config.data.get("repeats", 1)
        return order.example_indices(seed, batch, rows, len(source), repeats)

    def eval_batches(
        self, split: str, **arguments: Any
    ) -> Iterator[dict[str, np.ndarray]]:
        """One pass over `split`; `arguments` of `data.eval_batches` as above."""
        workers = self._config.data.workers
        return data.eval_batches(self.source(split), workers=workers, **arguments)

    @abc.abstractmethod
    def summarize(self, sums: Mapping[str, Any], split: str) -> dict[str, float]:
        """Scores over `split` from the sums of `Objective.sums`."""

    @staticmethod
    @abc.abstractmethod
    def rank(scores: Mapping[str, float]) -> float:
        """How good a checkpoint with these scores is; more is better."""

    def ranking(self) -> Callable[[Mapping[str, float]], float]:
        """`rank`, or by the score that `config.checkpoint.best_by` names.

        Raises:
          UserError: the task has no such score.
        """
        name = self._config.checkpoint.get("best_by", "")
        if not name:
            return self.rank
        columns = {column.score: column for column in self.columns}
        if name not in columns:
            raise UserError(one_of("config.checkpoint.best_by", name, columns))
        sign = -1 if columns[name].less else 1
        return lambda scores: sign * scores[name]

    @abc.abstractmethod
    def describe(self) -> str:
        """The data in a few words."""

    def details(self) -> list[tuple[str, str]]:
        """More to be known of the data before a run: what, and which."""
        return []
