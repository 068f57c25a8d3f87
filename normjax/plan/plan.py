"""Compile the steps of a run for devices that need not be there; read the result."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from normjax.core.operations import inner_jaxprs, traced_multiply_adds
from normjax.devices.chips import GIB, Chip, chip_of
from normjax.devices.mesh import DATA, REST, STAGE
from normjax.devices.pipeline import bubble
from normjax.plan.roofline import Roofline, roofline, utilisation
from normjax.plan.tasks import SUFFIX
from normjax.plan.traffic import Traffic, traffic
from normjax.tasks import TASKS
from normjax.train.experiment import Experiment, build_experiment
from normjax.train.phases import by_phase
from normjax.train.programs import trace_eval_step, trace_train_step


class Memory(NamedTuple):
    """Bytes on one device while a step runs.

    Attributes:
      parameters, optimizer, average, statistics: of the state; the average is that of
        the parameters (EMA), statistics are every other collection of the model.
      batch: of the data.  padding: of all of these, as the compiler lays them out.
      results: what does not take the place of an argument.
      temporaries: activations, gradients and whatever else lives within the step.
      program: the code.
    """

    parameters: int
    optimizer: int
    average: int
    statistics: int
    batch: int
    padding: int = 0
    results: int = 0
    temporaries: int = 0
    program: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


@dataclasses.dataclass(frozen=True)
class Step:
    """One compiled program.

    Attributes:
      memory: of a device.  available: bytes that a program may have; None: unknown.
      flops: of matrix products and convolutions, all devices together, recomputation
        and bubbles included.  model_flops: the same without these.
      traffic: None where the compiler gave up for want of memory.
      bound: None without that or on a chip that is not known.
    """

    memory: Memory
    available: float | None
    flops: float
    model_flops: float
    traffic: Traffic | None
    bound: Roofline | None

    @property
    def excess(self) -> float:
        """Bytes that are missing; 0 or less: it fits."""
        if self.available is None:
            return 0.0
        missing = self.memory.total - self.available
        return missing if self.traffic else max(missing, 1.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on some devices.

    Attributes:
      name: of the topology.  kind: of its devices.  chip: None if not in `CHIPS`.
      mesh: size by axis.  batch_size: rows a step.  units: what `units_per_second`
        counts.  steps: "train" and, where asked for, "eval".
      microbatches: of a training step.
    """

    name: str
    kind: str
    chip: Chip | None
    mesh: dict[str, int]
    batch_size: int
    units: str
    units_per_row: int
    steps: dict[str, Step]
    microbatches: int = 1

    @property
    def bubble(self) -> float:
        """The share of a training step in which a stage waits; 0 without stages."""
        return bubble(self.mesh.get(STAGE, 1), self.microbatches)

    @property
    def count(self) -> int:
        """Devices."""
        return math.prod(self.mesh.values())

    @property
    def units_per_second(self) -> float | None:
        """Images or tokens a second of training, at most."""
        bound = self.steps["train"].bound
        rows = self.batch_size * self.units_per_row
        return rows / bound.seconds if bound and bound.seconds else None

    @property
    def mfu(self) -> float | None:
        """Largest utilisation of the devices in training."""
        step = self.steps["train"]
        if self.chip is None or step.bound is None:
            return None
        share = step.model_flops / self.count
        return utilisation(self.chip, model_flops=share, seconds=step.bound.seconds)


def make_plan(
    config: Any, name: str, devices: Sequence[Any], steps: Sequence[str] = ("train",)
) -> Plan:
    """Compile the steps of `config` for `devices`.

    Args:
      config: of `without_data`.  name: of the topology.
      steps: "train", "eval".

    Raises:
      UserError: the config is not allowed, or does not go with the devices.
    """
    experiment = build_experiment(config, devices)
    kind = devices[0].device_kind
    chip = chip_of(kind)
    return Plan(
        name=name,
        kind=kind,
        chip=chip,
        mesh=dict(experiment.mesh.shape),
        batch_size=config.batch_size,
        units=experiment.task.unit,
        units_per_row=experiment.task.units_per_row,
        steps={step: _STEPS[step](experiment, chip) for step in steps},
        microbatches=config.microbatches,
    )


def without_data(config: Any, vocab_size: int | None = None) -> Any:
    """A copy of `config` whose task needs no data, if it can do without.

    Args:
      vocab_size: tokens of a tokenizer whose file is not there.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if f"{config.task}{SUFFIX}" in TASKS:
            config.task += SUFFIX
        config.data.vocab_size = vocab_size or 0
    return config


def _train(experiment: Experiment, chip: Chip | None) -> Step:
    phases = by_phase(experiment, lambda: trace_train_step(experiment))
    traced, plain = max(phases.values(), key=_equations), None
    staged = experiment.mesh.shape[STAGE] > 1
    if staged or getattr(experiment.model, "remat", False):
        config = experiment.config.copy_and_resolve_references()
        with config.ignore_type():
            config.model.remat = False
        if staged:
            config.mesh = {DATA: REST}
        devices = list(experiment.mesh.devices.flat)
        plain = trace_train_step(build_experiment(config, devices))
    arguments = experiment.abstract_state(), experiment.abstract_batch()
    return _step(experiment, traced, arguments, chip, plain)


def _eval(experiment: Experiment, chip: Chip | None) -> Step:
    traced = trace_eval_step(experiment)
    variables = experiment.abstract_state().eval_variables()
    arguments = variables, experiment.abstract_batch(train=False)
    return _step(experiment, traced, arguments, chip)


_STEPS = {"train": _train, "eval": _eval}


def _equations(traced: jax.stages.Traced) -> int:
    def of(jaxpr: Any) -> int:
        return sum(1 + sum(map(of, inner_jaxprs(e.params))) for e in jaxpr.eqns)

    return of(traced.jaxpr.jaxpr)


def _flops(traced: jax.stages.Traced) -> float:
    return 2.0 * traced_multiply_adds(traced.jaxpr.jaxpr)


def _step(
    experiment: Experiment,
    traced: jax.stages.Traced,
    arguments: tuple[Any, Any],
    chip: Chip | None,
    plain: jax.stages.Traced | None = None,
) -> Step:
    memory = _arguments(*arguments)
    flops = _flops(traced)
    count = experiment.mesh.size
    available = chip.memory if chip else None
    moved = bound = None
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        total, available = out_of_memory(error, memory.total)
        memory = memory._replace(temporaries=int(total - memory.total))
    else:
        memory = _with_compiled(memory, compiled.memory_analysis())
        moved = traffic(compiled.as_text() or "", count)
        if chip:
            bound = roofline(
                chip, flops=flops / count, moved=moved.memory, sent=moved.sent
            )
    needed = flops if plain is None else _flops(plain)
    return Step(memory, available, flops, needed, moved, bound)


def _arguments(state: Any, batch: Any) -> Memory:
    """What the arguments of a step take on a device: of training or of evaluation."""
    if isinstance(state, dict):
        rest = {name: tree for name, tree in state.items() if name != "params"}
        params, optimizer, average = state["params"], (), ()
    else:
        rest = state.model_state, state.step, state.rng
        params, optimizer = state.params, state.opt_state
        average = state.ema, state.ema_stats
    return Memory(*map(_bytes, (params, optimizer, average, rest, batch)))


def _bytes(tree: Any) -> int:
    """Of the part of the arrays of `tree` that lies on one device."""
    shapes = (
        (leaf.sharding.shard_shape(leaf.shape), leaf) for leaf in jax.tree.leaves(tree)
    )
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in shapes)


def _with_compiled(memory: Memory, stats: Any) -> Memory:
    return memory._replace(
        padding=max(stats.argument_size_in_bytes - memory.total, 0),
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_TEMPORARIES = re.compile(rf"temporaries \({_SIZE}\) exceeds available \w+ \({_SIZE}\)")
_USED = re.compile(rf"[Uu]sed {_SIZE} of {_SIZE}")


def out_of_memory(error: Exception, arguments: int) -> tuple[float, float]:
    """Bytes that the program needs and may have, as the compiler's error says.

    Raises:
      Exception: the same error, if it says something else.
    """
    text = str(error)
    found = _TEMPORARIES.search(text) or _USED.search(text)
    if "RESOURCE_EXHAUSTED" not in text or found is None:
        raise error
    number, unit, limit, limit_unit = found.groups()
    needed = float(number) * _UNITS[unit]
    if found.re is _TEMPORARIES:
        needed += arguments
    return needed, float(limit) * _UNITS[limit_unit]
