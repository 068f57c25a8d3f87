"""The training step as programs that hold one phase of the model's schedules each."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from normjax.core.phases import (
    Path,
    Spans,
    counters_in,
    covers,
    known_counters,
    updates_left,
)
from normjax.devices.processes import gather
from normjax.train.experiment import Experiment
from normjax.train.programs import trace_train_step

AHEAD = 1000
"""Updates before its first that a program is compiled, beside the training."""

Counters = dict[Path, np.ndarray]
T = TypeVar("T")


class Phase(NamedTuple):
    """The step, traced for counters with certain values.

    Attributes:
      traced: (state, batch) -> (state, metrics), before it is compiled.
      spans: which values, by module.
    """

    traced: jax.stages.Traced
    spans: Spans


class Program(NamedTuple):
    """A compiled phase."""

    run: Any
    spans: Spans
    flops: float


def trace_phase(experiment: Experiment, counters: Counters | None = None) -> Phase:
    """The training step for the experiment's shapes and for these counters.

    Args:
      counters: default: those of a run that begins.

    Raises:
      UserError: as of `trace_train_step`.
    """
    if counters is None:
        counters = begun_counters(experiment)
    with known_counters(counters) as spans:
        traced = trace_train_step(experiment)
    return Phase(traced, spans)


def by_phase(experiment: Experiment, make: Callable[[], T]) -> dict[int, T]:
    """What `make` traces for each phase that a run from its beginning goes through.

    Returns:
      results by the first update of the phase.
    """
    counters, first = begun_counters(experiment), 0
    found: dict[int, T] = {}
    while first < experiment.config.total_steps:
        with known_counters(counters) as spans:
            found[first] = make()
        left = updates_left(spans, counters)
        if left == np.inf:
            break
        first, counters = first + int(left), _moved(counters, left)
    return found


def begun_counters(experiment: Experiment) -> Counters:
    """Those of a model that has not been trained: 0."""
    shapes = counters_in(experiment.abstract_state().model_state)
    return {path: np.zeros(x.shape, x.dtype) for path, x in shapes.items()}


def _moved(counters: Counters, updates: float) -> Counters:
    return {path: x + int(updates) for path, x in counters.items()}


class TrainStep:
    """(state, batch) -> (state, metrics), by the program for the state's counters.

    Counters are read where an update could be the first of another phase, and nowhere
    else: each counts one update at most, so the host knows how long they cannot get
    there. The program of the next phase is compiled in the background. To be closed.

    Args:
      phase: any of the experiment's that is traced already.
    """

    def __init__(self, experiment: Experiment, phase: Phase | None = None):
        self._experiment, self._phase = experiment, phase
        self._programs: list[Program] = []
        self._background = concurrent.futures.ThreadPoolExecutor(1, "compile")
        self._next: concurrent.futures.Future[Program] | None = None
        self._left: float = 0
        self._remaining = 0

    def begin(self, state: Any, updates: int) -> None:
        """Get ready for a state and that many updates from it."""
        self._remaining = updates
        self._look(state)

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        if not self._left:
            self._look(state)
        if self._left == AHEAD:
            self._compile_ahead()
        self._left -= 1
        self._remaining -= 1
        return self._program.run(state, batch)

    @property
    def flops(self) -> float:
        """Of an update on a device, as the compiler counts them."""
        return self._program.flops

    def close(self) -> None:
        """Waits for what is being compiled."""
        self._background.shutdown(cancel_futures=True)

    def _look(self, state: Any) -> None:
        """Read the counters and choose the program."""
        counters = jax.device_get(counters_in(state.model_state))
        fitting = (p for p in self._programs if covers(p.spans, counters))
        self._program = next(fitting, None) or self._compiled(counters)
        spans = self._program.spans
        self._counters, self._left = counters, updates_left(spans, counters)
        self._span = self._left
        if self._left <= AHEAD:
            self._compile_ahead()

    def _compiled(self, counters: Counters) -> Program:
        """Of the phase of these counters; the same in all processes."""
        program = self._next.result() if self._next else None
        self._next = None
        if program is None or not covers(program.spans, counters):
            phase, self._phase = self._phase, None
            if phase is None or not covers(phase.spans, counters):
                phase = trace_phase(self._experiment, counters)
            program = _compile(phase)
        self._programs.append(program)
        gather(None)  # the next step does not wait long for those that compile longer
        return program

    def _compile_ahead(self) -> None:
        if self._next or self._left >= self._remaining:
            return
        then = _moved(self._counters, self._span)
        if not any(covers(p.spans, then) for p in self._programs):
            self._next = self._background.submit(
                lambda: _compile(trace_phase(self._experiment, then))
            )


def _compile(phase: Phase) -> Program:
    compiled = phase.traced.lower().compile()
    costs = compiled.cost_analysis() or {}
    return Program(compiled, phase.spans, costs.get("flops", 0.0))
