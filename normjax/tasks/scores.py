"""Exact sums of metrics over a split."""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from normjax.tasks.base import Batch, Objective

MAX_IN_FLIGHT = 2  # batches that the host may run ahead of the device


def make_eval_step(
    apply: Callable[..., Any], objective: Objective
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Sums of the metrics over one batch, as a function (variables, batch) -> sums.

    Args:
      apply: `model.apply`; called with train=False and no mutable collection.

    batch: what the objective takes; what is masked in it counts for nothing.
    """

    def eval_step(variables, batch):
        x, known = objective.inputs(batch)
        return objective.sums(apply(variables, x, train=False, **known), batch)

    return eval_step


def evaluate(
    eval_step: Callable[[Any, Batch], dict[str, jax.Array]],
    variables: Any,
    batches: Iterable[Batch],
    sums: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Sums of the metrics of `variables` over all `batches`, added in float64.

    Args:
      sums: of batches before these; added to in place, so that they are there if
        `batches` raises.
    """
    sums = {} if sums is None else sums
    pending: collections.deque[Any] = collections.deque()

    def add() -> None:
        for name, value in jax.device_get(pending.popleft()).items():
            sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)

    for batch in batches:
        pending.append(eval_step(variables, batch))
        if len(pending) > MAX_IN_FLIGHT:
            add()
    while pending:
        add()
    return sums
