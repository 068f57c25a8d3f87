"""Cycles of a program on a TPU by the schedule that its compiler makes.

libtpu places every operation of a kernel into the cycle in which it issues, so that the
bundles, loops counted by their turns, are the time that the core needs if no operand
comes late. What an instruction moves through the main memory takes at least its bytes
by the bandwidth. An instruction takes the longer of both:

    cycles = max(bundles, bytes / bandwidth x clock, results / 4,096 bytes)

(the last: a core stores one register a cycle). The same program has the same number
every time, and at least what all its bytes take. Not counted: the wait for the first
operand of a kernel, and the host.
"""

import functools
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from normjax.core.errors import UserError
from normjax.core.operations import traced_multiply_adds
from normjax.devices.chips import CHIPS, Chip
from normjax.plan import hlo, tpu
from normjax.plan.bundles import UNITS, Kernel, read_kernel
from normjax.plan.collectives import KINDS
from normjax.plan.parts import MOVES, PARTS, part_of
from normjax.plan.topology import parse
from normjax.plan.traffic import FREE, memory_bytes, sent_bytes

REGISTER = 4096
"""Bytes that a core stores in a cycle at most."""

TOPOLOGY = "v5e:2x2"
"""Of the smallest slice that libtpu makes of the chip that is taken by default."""

_TURNS = re.compile(r'"iteration_bounds":\[([^\]]*)\]')
_PATH = re.compile(r'op_name="([^"]*)"')
_CALLED = ("jit(call)/", "call_exported/", "jit(flat)/")


class Cost(NamedTuple):
    """One instruction of the program.

    Attributes:
      name: in the program.  path: of the scopes that it comes from.  part: of `PARTS`.
      cycles: of all its runs; 0 of a copy that runs beside other instructions.
      times: runs.  bytes: of one, through the main memory.
      limit: what holds it up: "memory", "moves" (of registers) or one of `UNITS`.
      busy: the share of its slots that a unit fills, by the names of `UNITS`.
    """

    name: str
    path: str
    part: str
    cycles: float
    times: int
    bytes: float
    limit: str
    busy: Mapping[str, float]


class Schedule(NamedTuple):
    """A program on one device.

    Attributes:
      chip: that it was compiled for.  costs: of its instructions.
      flops: of matrix products and convolutions, of one device.
      unknown_loops: loops whose turns the compiler does not know; they count once.
      temporaries: bytes of what lives within the program, such as activations.
    """

    chip: Chip
    costs: tuple[Cost, ...]
    flops: float
    unknown_loops: int
    temporaries: int = 0

    @property
    def cycles(self) -> float:
        """Of all instructions, one after the other; at least those of the memory."""
        return max(_cycles(self.costs), self.memory_cycles)

    @property
    def memory_cycles(self) -> float:
        """In which everything passes the main memory, copies beside kernels too."""
        moved = sum(cost.times * cost.bytes for cost in self.costs)
        return moved / self.chip.bandwidth * self.chip.clock

    @property
    def seconds(self) -> float:
        """The same as time."""
        return self.cycles / self.chip.clock

    @property
    def mfu(self) -> float:
        """The share of the device's peak that the products come to."""
        return self.flops / (self.seconds * self.chip.flops) if self.costs else 0.0

    def by_part(self) -> dict[str, float]:
        """Cycles by `PARTS`, those that have any."""
        totals: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for cost in self.costs:
            totals[cost.part] += cost.cycles
        return {part: total for part, total in totals.items() if total}


class Program(NamedTuple):
    """A function traced for its arguments, ready to be compiled for a TPU.

    Attributes:
      exported: `jax.export.Exported.serialize`.  flops: of all devices.
      mesh: of the devices that it is for, sizes by axis.
    """

    exported: bytes
    flops: float
    mesh: Mapping[str, int]


def program_of(function: Callable, *arguments: Any) -> Program:
    """`function` for `arguments` (arrays or `jax.ShapeDtypeStruct`, sharded or not).

    Args:
      function: jitted or not.
    """
    import jax
    import jax.export

    leaves, structure = jax.tree.flatten(arguments)

    def flat(*leaves):  # a serialized program knows no trees of others
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    traced = jax.jit(flat).trace(*leaves)
    flops = 2.0 * traced_multiply_adds(traced.jaxpr.jaxpr)
    # The same JAX reads it again, so that all of its calls will be known.
    known = [jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
    export = jax.export.export(jax.jit(flat), platforms=["tpu"], disabled_checks=known)
    exported = export(*leaves)
    return Program(bytes(exported.serialize()), flops, _mesh(leaves))


def _mesh(arrays: Iterable[Any]) -> dict[str, int]:
    shardings = (getattr(array, "sharding", None) for array in arrays)
    meshes = (getattr(sharding, "mesh", None) for sharding in shardings)
    return next((dict(mesh.shape) for mesh in meshes if mesh), {"data": 1})


def schedule(function: Callable, *arguments: Any, topology: str = TOPOLOGY) -> Schedule:
    """The schedule of `function` for `arguments` on the TPU of a topology.

    Nothing is computed and no TPU is needed; another process compiles. An argument
    without sharding is whole on one device.

    Args:
      function: jitted or not.
      arguments: arrays or `jax.ShapeDtypeStruct`.
      topology: as `python -m normjax.plan --topology` takes them, of a TPU.

    Raises:
      UserError: no such topology, or libtpu does not compile the program.
    """
    (found,) = schedules({"program": program_of(function, *arguments)}, topology)
    return found[1]


def schedules(
    programs: Mapping[str, Program], topology: str = TOPOLOGY
) -> Iterator[tuple[str, Schedule]]:
    """(name, schedule) of every program as it is compiled, all in one process.

    Raises:
      UserError: no such topology, or libtpu does not compile a program.
    """
    chip = _chip(topology)
    with tempfile.TemporaryDirectory() as folder:
        for index, program in enumerate(programs.values()):
            path = Path(folder, f"{index:04d}{tpu.EXPORTED}")
            path.write_bytes(program.exported)
            path.with_suffix(tpu.MESH).write_text(json.dumps(program.mesh))
        compiled = _compiled(folder, topology)
        for (name, program), path in zip(programs.items(), compiled, strict=True):
            text, kernels = path.with_suffix(tpu.HLO).read_text(), Kernels(path)
            found = read_schedule(text, kernels, chip, program)
            temporaries = int(path.with_suffix(tpu.BYTES).read_text())
            yield name, found._replace(temporaries=temporaries)
            shutil.rmtree(path)


def _chip(topology: str) -> Chip:
    kind, _ = parse(topology)
    found = [chip for chip in CHIPS if chip.name == kind and chip.clock]
    if not found:
        raise UserError(f"--topology={topology}: schedules are of TPUs, as {TOPOLOGY}")
    return found[0]


def _compiled(folder: str, topology: str) -> Iterator[Path]:
    """Every program in `folder` once it is compiled."""
    command = [sys.executable, "-m", tpu.__name__, folder, topology]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            yield from (Path(folder, line.strip()) for line in process.stdout or ())
            process.wait()
        finally:
            process.terminate()  # where nobody waits for the rest
        if process.returncode:
            errors.seek(0)
            lines = [line for line in errors if line.strip()]
            reason = lines[-1].strip() if lines else f"exit code {process.returncode}"
            raise UserError(f"libtpu does not compile it for {topology}: {reason}")


class Kernels:
    """The kernels that were dumped into a folder, read as they are asked for."""

    def __init__(self, folder: Path):
        self._files: dict[tuple[str, str], Path] = {}
        self._same: dict[str, str] = {}
        for path in folder.iterdir():
            name, stage = _name_and_stage(path.name)
            if stage == tpu.MAP:
                self._same = _read_map(path.read_text())
            elif stage in tpu.STAGES:
                self._files[name, stage] = path

    def find(self, name: str, turns: int | None, rows: int) -> Kernel | None:
        """Of the instruction `name`; None where it is no kernel of its own."""
        return self._read(self._same.get(name, name), turns, rows)

    @functools.cache  # noqa: B019  # as long as the folder is there
    def _read(self, name: str, turns: int | None, rows: int) -> Kernel | None:
        bundles, slots = (self._files.get((name, stage)) for stage in tpu.STAGES)
        if bundles is None:
            return None
        used = slots.read_text() if slots else ""
        return read_kernel(bundles.read_text(), used, turns, rows)


def _name_and_stage(file: str) -> tuple[str, str]:
    """Of "TIME-NAME-NUMBER-STAGE.txt"."""
    found = re.fullmatch(r"\d+-(.*?)-\d+-([a-z].*)\.\w+", file)
    return (found[1], found[2]) if found else (file, "")


def _read_map(text: str) -> dict[str, str]:
    """Instruction -> the one that was scheduled for all that equal it."""
    same, key = {}, ""
    for line in text.splitlines():
        if line.startswith("key:"):
            key = line.removeprefix("key:")
        elif line.startswith("  "):
            same[line.strip()] = key
    return same


def read_schedule(
    text: str, kernels: Kernels, chip: Chip, program: Program
) -> Schedule:
    """What the compiled program `text` takes, with its kernels."""
    parsed = hlo.parse(text)
    unknown = set()

    @functools.cache
    def of(name: str) -> tuple[Cost, ...]:
        computation = parsed.computations[name]
        found: list[Cost] = []
        for each in computation.instructions.values():
            if each.opcode == "while":
                trips = hlo.trip_count(parsed, computation, each)
                if trips is None:
                    unknown.add(each.name)
                for kind in ("body", "condition"):
                    found += _repeated(of(each.called[kind][0]), trips or 1)
            elif each.opcode == "conditional":
                branches = map(of, each.called["branch_computations"])
                found += max(branches, key=_cycles)
            elif each.opcode in ("call", "async-start"):
                for names in each.called.values():
                    found += (cost for inner in names for cost in of(inner))
            else:
                cost, loops = _cost(parsed, computation, each, kernels, chip)
                found += [cost] if cost else []
                unknown.update(f"{each.name} {i}" for i in range(loops))
        return tuple(found)

    costs, devices = of(parsed.entry), math.prod(program.mesh.values())
    return Schedule(chip, costs, program.flops / devices, len(unknown))


def _cycles(costs: Sequence[Cost]) -> float:
    return sum(cost.cycles for cost in costs)


def _repeated(costs: Sequence[Cost], times: int) -> list[Cost]:
    return [
        cost._replace(cycles=times * cost.cycles, times=times * cost.times)
        for cost in costs
    ]


def _cost(
    program: hlo.Program,
    computation: hlo.Computation,
    each: hlo.Instruction,
    kernels: Kernels,
    chip: Chip,
) -> tuple[Cost | None, int]:
    """(what an instruction takes, its loops of unknown length)."""
    asynchronous = each.opcode.endswith(("-start", "-done", "-update"))
    collective = each.opcode.removesuffix("-start") in KINDS
    moved = memory_bytes(program, computation, each)
    if asynchronous and not collective and moved:
        return Cost(each.name, each.opcode, MOVES, 0.0, 1, moved, "beside", {}), 0
    if each.opcode in FREE or (asynchronous and not collective):
        return None, 0
    kernel = kernels.find(each.name, _turns(each.line, chip), chip.rows)
    size = sum(array.size for array in each.arrays)
    floors = {"memory": moved / chip.bandwidth * chip.clock}
    if collective:
        kind = each.opcode.removesuffix("-start")
        sent = sent_bytes(kind, size, each.group_size(2))
        floors["interconnect"] = sent / chip.interconnect * chip.clock
    elif kernel and kernel.unknown_loops:
        floors["moves"] = size / REGISTER
    issued = kernel.cycles if kernel else 0.0
    limit, floor = max(floors.items(), key=lambda item: item[1])
    busy = kernel.busy if kernel else {}
    if issued >= floor:
        limit = UNITS[max(busy, key=busy.__getitem__)] if busy else ""
    found = _PATH.search(each.line)
    path = found[1] if found else each.opcode
    for prefix in _CALLED:
        path = path.removeprefix(prefix)
    part = "collectives" if collective else part_of(path)
    cycles = max(issued, floor)
    cost = Cost(each.name, path, part, cycles, 1, moved, limit, busy)
    return (cost if cycles else None), kernel.unknown_loops if kernel else 0


def _turns(line: str, chip: Chip) -> int | None:
    """In which a core computes the instruction, if the program says."""
    found = _TURNS.search(line)
    if not found:
        return None
    turns = math.prod(int(number) for number in re.findall(r"\d+", found[1]))
    return -(-turns // chip.cores)
