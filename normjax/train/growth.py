"""Batches that grow inside of the loop (AdAdaGrad; Lau et al., 2024).

The data come in batches of `config.batch_size` rows with numbers of their own. An
update takes one of them, or, once batches have grown, 2, 4, 8, ... that follow each
other; the state counts which. So a run goes on from its state alone, whatever its
batches did before.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from normjax import optim
from normjax.core.collections import BATCH_STATS, DIAGNOSTICS, LOSSES, PARAMS
from normjax.core.errors import UserError
from normjax.devices.mesh import split_rows
from normjax.optim import BATCH_TESTS, BatchTest, Spread
from normjax.tasks import Objective
from normjax.tasks.base import Batch, compares_rows
from normjax.train.state import Taken, TrainState
from normjax.train.step import keys_of

ROWS, REQUIRED = "batch_size", "required_batch_size"
"""Metrics: rows of the batch of an update, and those that a test requires."""

CURVE = ("rows", True, (ROWS, REQUIRED))


class Numbers:
    """Which batches of the data the updates of a run take.

    Args:
      state: that the run goes on from.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.train.growth import Numbers
      >>> from normjax.train.state import Taken, TrainState
      >>> state = TrainState(jnp.array(5), {}, {}, {}, None, None)
      >>> Numbers(state).first(7)
      7
      >>> numbers = Numbers(state.replace(taken=Taken(jnp.array(8), jnp.array(2))))
      >>> numbers.grow(6, parts=4)
      >>> [(numbers.first(step), numbers.parts(step)) for step in (5, 6, 7)]
      [(8, 2), (10, 4), (14, 4)]
    """

    def __init__(self, state: TrainState):
        step = int(state.step)
        taken = state.taken or Taken(step, 1)  # type: ignore[arg-type]
        self._sizes = [(step, int(taken.before), int(taken.parts))]

    def grow(self, step: int, parts: int) -> None:
        """From `step` updates on, each takes `parts`."""
        self._sizes.append((step, self.first(step), parts))

    def first(self, step: int) -> int:
        """Number of the first that the update after `step` updates takes."""
        since, before, parts = self._of(step)
        return before + (step - since) * parts

    def parts(self, step: int) -> int:
        """How many it takes."""
        return self._of(step)[2]

    def _of(self, step: int) -> tuple[int, int, int]:
        return next(s for s in reversed(self._sizes) if s[0] <= step)


def check_growth(experiment: Any) -> None:
    """Raise UserError where `config.batch_growth` cannot be followed."""
    config = experiment.config
    rule = config.batch_growth
    if rule.largest < 2 * config.batch_size:
        raise UserError(
            f"config.batch_growth.largest={rule.largest:,} leaves no room to grow: "
            f"at least 2 * config.batch_size = {2 * config.batch_size:,}"
        )
    if config.batch_size < 2:
        raise UserError("config.batch_growth.test needs config.batch_size of 2 or more")
    if compares_rows(experiment.objective):
        raise UserError(
            "config.batch_growth.test: the loss compares the rows of a batch, a single "
            "example has none"
        )
    if experiment.reads_batch:
        raise UserError(
            "config.batch_growth.test: the gradient of a single example is that of "
            "norms as they evaluate, and here the rows of a batch meet there"
        )


def parts_for(required: float, rows: int, largest: int) -> int:
    """The power of two of batches that holds `required` rows, within `largest`.

    Args:
      required: rows.  rows: of one batch.  largest: rows allowed.

    Example:
      >>> from normjax.train.growth import parts_for
      >>> parts_for(70.5, rows=16, largest=200), parts_for(9e9, rows=16, largest=200)
      (8, 8)
    """
    room = int(math.log2(largest / rows))
    if not required > rows:  # NaN asks for nothing
        return 1
    return 2 ** min(math.ceil(math.log2(min(required, largest) / rows)), room)


def make_measure(
    model: Any, objective: Objective, parts: int, config: Any, scanned: tuple[str, ...]
) -> Callable[[TrainState, Batch], BatchTest]:
    """The test of `config.batch_growth` as a function (state, batch), to be jitted.

    Of all examples of the batch as the next update will see them. The gradient of one
    is that of the objective with the model as it is evaluated: rows that meet have no
    gradients of their own. What is not trained does not count. A microbatch at a time
    has single gradients in memory, of which scalars are kept.

    Args:
      model: anything with the `apply` of a Flax module, its parameters whole.
      parts: microbatches.
      config: of the run.
      scanned: names at the root of parameters with a first axis of layers.
    """

    def measure(state: TrainState, batch: Batch) -> BatchTest:
        examples = objective.examples(batch, keys_of(state)[0])
        micro = split_rows(examples, parts)
        roles = jax.tree.leaves(optim.roles(config.optim, state.params, scanned))

        def loss(params, inputs, targets):
            x, known = inputs
            outputs, _ = model.apply(
                {PARAMS: params, **state.model_state},
                x,
                train=False,
                **known,
                mutable=[BATCH_STATS, DIAGNOSTICS, LOSSES],
            )
            return objective.loss(outputs, targets)[0]

        def trained(inputs, targets):
            """The gradient, as far as it counts."""
            grads = jax.tree.leaves(jax.grad(loss)(state.params, inputs, targets))
            pairs = zip(grads, roles, strict=True)
            return [g.astype(jnp.float32) for g, role in pairs if role == "train"]

        def add(mean, part):
            own = trained(*part)
            return [m + g / parts for m, g in zip(mean, own, strict=True)], None

        pairs = zip(jax.tree.leaves(state.params), roles, strict=True)
        zeros = [jnp.zeros(x.shape) for x, role in pairs if role == "train"]
        mean, _ = jax.lax.scan(add, zeros, micro)

        def scalars(example):
            grads = trained(*jax.tree.map(lambda x: x[None], example))
            pairs = list(zip(grads, mean, strict=True))
            distance = sum(jnp.sum((g - m) ** 2) for g, m in pairs)
            return distance, sum(jnp.sum(g * m) for g, m in pairs)

        distances, products = jax.lax.map(jax.vmap(scalars), micro)
        square = sum(jnp.sum(m * m) for m in mean)
        spread = Spread(jnp.asarray(square), distances.ravel(), products.ravel())
        test, tolerance = config.batch_growth.test, config.batch_growth.tolerance
        return BATCH_TESTS[test](spread, tolerance)

    return measure
