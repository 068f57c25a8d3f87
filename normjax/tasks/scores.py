"""Exact sums of metrics over a split."""

import collections
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from normjax.tasks.base import Batch, Objective

MAX_IN_FLIGHT = 2  # batches that the host may run ahead of the device


class Gathered(NamedTuple):
    """Rows of a batch that are kept, one batch behind the other, where others are sums.

    Of scores that compare each row of a split with all others.

    Attributes:
      rows: [B, ...].
    """

    rows: Any


def make_eval_step(
    apply: Callable[..., Any], objective: Objective
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Sums of the metrics over one batch, as a function (variables, batch) -> sums.

    Args:
      apply: `model.apply`; called with train=False and no mutable collection.

    batch: what the objective takes; what is masked in it counts for nothing.
    """

    step = make_noted_step(apply, objective)
    return lambda variables, batch: step(variables, batch)[0]


def make_noted_step(
    apply: Callable[..., Any], objective: Objective
) -> Callable[[Any, Batch], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Sums as of `make_eval_step`, and what is answered in each row that has a label.

    Rows of one answer, logits [B, K], give "label", "answer", int [B], "probability",
    float32 [B], of the answer, and "counted", bool [B]; others nothing.
    """

    def step(variables, batch):
        x, known = objective.inputs(batch)
        outputs = apply(variables, x, train=False, **known)
        return objective.sums(outputs, batch), _answers(objective, outputs, batch)

    return step


def _answers(objective: Objective, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
    if "label" not in batch:
        return {}
    logits, counted = objective.answers(outputs, batch)
    if logits.ndim != 2:
        return {}
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return {
        "label": batch["label"],
        "answer": jnp.argmax(logits, axis=-1),
        "probability": jnp.max(probabilities, axis=-1),
        "counted": counted,
    }


def evaluate(
    eval_step: Callable[[Any, Batch], Any],
    variables: Any,
    batches: Iterable[Batch],
    sums: dict[str, np.ndarray] | None = None,
    note: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> dict[str, np.ndarray]:
    """Sums of the metrics of `variables` over all `batches`, added in float64.

    What is `Gathered` becomes one array of the rows of all of them.

    Args:
      sums: of batches before these; added to in place, so that they are there if
        `batches` raises.
      note: called with the second of what `eval_step` gives, where that are sums and
        rows (`make_noted_step`), on the host and in the order of the batches.
    """
    sums = {} if sums is None else sums
    gathered: dict[str, list[np.ndarray]] = {}
    pending: collections.deque[Any] = collections.deque()

    def add() -> None:
        found = jax.device_get(pending.popleft())
        if note is not None:
            found, rows = found
            note(rows)
        for name, value in found.items():
            if isinstance(value, Gathered):
                gathered.setdefault(name, []).append(value.rows)
            else:
                sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)

    for batch in batches:
        pending.append(eval_step(variables, batch))
        if len(pending) > MAX_IN_FLIGHT:
            add()
    while pending:
        add()
    return {**sums, **{k: np.concatenate(rows) for k, rows in gathered.items()}}
