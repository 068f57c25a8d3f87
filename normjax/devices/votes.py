"""All processes of a run stop at the same step."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from normjax.devices.mesh import (
    batch_shards,
    replicated,
    several_processes,
    split_batch,
)
from normjax.devices.signals import Interrupt, Stopped

MAX_IN_FLIGHT = 2  # votes that are cast and not yet read

STOP = "stop"
"""Entry of batches and of metrics: who wants to stop, and whether anyone does."""


class Votes:
    """Agreement to stop: a signal may reach one process only, or each at another step.

    A process's vote travels with a batch to the devices, where the step finds the
    largest, and comes back with the metrics. All processes read the metrics of a step
    at the same point of their loops, so all stop there. It costs one integer a step and
    no waiting. A process that is alone does not vote.

    Attributes:
      passed: whether a vote to stop has been read.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._alone = mesh, not several_processes(mesh)
        self.passed = False

    def cast(self, batch: Any, interrupt: Interrupt) -> Any:
        """`batch` with this process's vote."""
        if self._alone:
            return batch
        count = batch_shards(self._mesh) // jax.process_count()
        mine = np.full(count, interrupt.received, np.int32)
        sharding = split_batch(self._mesh)
        votes = jax.make_array_from_process_local_data(sharding, mine)
        return {**batch, STOP: votes}

    def read(self, metrics: dict[str, float]) -> dict[str, float]:
        """`metrics` of a step without the outcome of its vote."""
        self.passed |= bool(metrics.get(STOP, 0))
        return {name: value for name, value in metrics.items() if name != STOP}

    def stop(self, interrupt: Interrupt) -> bool:
        """Whether to stop now: the same in all processes."""
        return interrupt.received if self._alone else self.passed

    def watch(self, batches: Iterator[Any], interrupt: Interrupt) -> Iterator[Any]:
        """`batches` of what is no training step, until a vote to stop is read.

        Raises:
          Stopped: in all processes before the same batch.
        """
        pending: collections.deque[jax.Array] = collections.deque()
        largest = jax.jit(jnp.max, out_shardings=replicated(self._mesh))
        with contextlib.closing(cast(Any, batches)):
            for batch in batches:
                if not self._alone:
                    pending.append(largest(self.cast({}, interrupt)[STOP]))
                if len(pending) > MAX_IN_FLIGHT:
                    self.passed |= bool(pending.popleft())
                if self.stop(interrupt):
                    raise Stopped
                yield batch


def with_votes(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`step` (state, batch) -> (state, metrics) that counts the votes in the batch."""
    if not several_processes(mesh):
        return step

    def voting(state, batch):
        rest = {name: rows for name, rows in batch.items() if name != STOP}
        state, metrics = step(state, rest)
        return state, {**metrics, STOP: jnp.max(batch[STOP])}

    return voting


def abstract_votes(mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What `Votes.cast` adds to a batch."""
    if not several_processes(mesh):
        return {}
    return {STOP: jax.ShapeDtypeStruct((batch_shards(mesh),), jnp.int32)}
