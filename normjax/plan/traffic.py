"""What a compiled program moves: through the memory of a device and between devices.

Bodies of loops count as often as they run, of a condition the branch that moves most
through memory. Padding of arrays does not count, of a scatter all that it may change.
"""

import functools
import math
import types
from collections.abc import Mapping
from typing import NamedTuple

from normjax.plan.collectives import Collective, as_named, collective
from normjax.plan.hlo import Computation, Instruction, Program, parse, trip_count

FREE = (
    "after-all",
    "bitcast",
    "constant",
    "conditional",
    "get-tuple-element",
    "iota",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
)
"""Opcodes that move nothing themselves."""

SLICES = ("dynamic-slice", "gather", "slice")


class Traffic(NamedTuple):
    """Of one run of a program on one device.

    Attributes:
      memory: bytes read from and written to the main memory.
      collectives: bytes of the results of collectives by kind, as
        `plan.collectives` counts them.
      sent: bytes that the device sends at least (see `sent_bytes`).
      unknown_loops: loops of unknown length; their bodies count once.
    """

    memory: float = 0.0
    collectives: Mapping[str, float] = types.MappingProxyType({})
    sent: float = 0.0
    unknown_loops: int = 0

    def plus(self, other: "Traffic", times: int = 1) -> "Traffic":
        """The sum of both, the other `times` over."""
        counts = dict(self.collectives)
        for kind, size in other.collectives.items():
            counts[kind] = counts.get(kind, 0) + times * size
        return Traffic(
            self.memory + times * other.memory,
            counts,
            self.sent + times * other.sent,
            self.unknown_loops + other.unknown_loops,
        )


def traffic(compiled_text: str, num_devices: int) -> Traffic:
    """What the program moves.

    Args:
      compiled_text: `Compiled.as_text()`.
      num_devices: that it runs on.
    """
    program = parse(compiled_text)

    @functools.cache
    def of(name: str) -> Traffic:
        computation, total = program.computations[name], Traffic()
        seen: set[str] = set()
        for each in computation.instructions.values():
            total = total.plus(_control(program, computation, each, of))
            memory = memory_bytes(program, computation, each)
            total = total.plus(Traffic(memory=memory))
            for inner in _collectives(program, each):
                # An asynchronous one stands in several fusions, with one channel.
                channel = inner.instruction.channel
                if channel in seen:
                    continue
                seen |= {channel} if channel else set()
                total = total.plus(_sent(inner, num_devices))
        return total

    return of(program.entry)


def sent_bytes(kind: str, result: float, group: int) -> float:
    """What each of `group` devices sends at least for a collective, in bytes.

    2 (n - 1) / n of the array for an all-reduce, (n - 1) / n of the whole for an
    all-gather, a reduce-scatter and an all-to-all (Patarasuk & Yuan, 2009); else the
    array.

    Args:
      result: bytes of the result on a device.
    """
    rest = (group - 1) / group
    factors = {
        "all-reduce": 2 * rest,
        "all-gather": rest,
        "reduce-scatter": group - 1,  # its result is a part
        "all-to-all": rest,
        "ragged-all-to-all": rest,
    }
    return result * factors.get(kind, 1 if group > 1 else 0)


def _control(program: Program, caller: Computation, each: Instruction, of) -> Traffic:
    """What the computations move that `each` runs."""
    if each.opcode == "while":
        times, total = trip_count(program, caller, each), Traffic()
        if times is None:
            total, times = Traffic(unknown_loops=1), 1
        for kind in ("body", "condition"):
            total = total.plus(of(each.called[kind][0]), times)
        return total
    if each.opcode == "conditional":
        branches = [of(name) for name in each.called["branch_computations"]]
        return max(branches, key=lambda branch: branch.memory)
    if each.opcode == "call" or each.opcode == "async-start":
        names = each.called.get("to_apply") or each.called.get("calls") or ()
        return functools.reduce(Traffic.plus, map(of, names), Traffic())
    return Traffic()


def memory_bytes(program: Program, caller: Computation, each: Instruction) -> float:
    """Bytes that an instruction reads and writes, without those inside calls."""
    if each.opcode in (*FREE, "call") or each.opcode.endswith(("-done", "-update")):
        return 0
    if each.opcode == "async-start" or "AllocateBuffer" in each.line:
        return 0
    if each.opcode in ("copy-start", "slice-start"):  # from one place to another
        ends = each.arrays[:2]
        return min(end.size for end in ends) * sum(end.main for end in ends)
    if each.opcode == "dynamic-update-slice":
        update = caller.instructions[each.operands[1]]
        return 2 * _main(update) if _main(each) else _main(update)
    if each.opcode in SLICES:
        source = caller.instructions[each.operands[0]]
        whole = sum(array.size for array in each.arrays)
        return _main(each) + (whole if _main(source) else 0)
    if each.opcode != "fusion":
        read = sum(_main(caller.instructions[name]) for name in set(each.operands))
        return read + _main(each)
    fused = each.called["calls"][0]
    total = _written(program, fused, each)
    for index, name in enumerate(each.operands):
        source = caller.instructions[name]
        if _main(source):
            total += min(_main(source), _read(program, fused, index))
    return total


def _main(each: Instruction) -> int:
    return sum(array.size for array in each.arrays if array.main)


def _read(program: Program, fused: str, index: int) -> float:
    """Bytes that a fusion reads of its operand: all, or the slices that it takes."""
    computation = program.computations[fused]

    def of(name: str) -> float:
        total = 0.0
        for user in computation.users(name):
            first = user.operands[0] == name
            if user.opcode in SLICES and first:
                total += sum(array.size for array in user.arrays)
            elif user.opcode == "dynamic-update-slice" and first:
                continue  # written in place
            elif user.opcode in ("bitcast", "copy") and user.name != computation.root:
                total += of(user.name)
            elif user.opcode == "fusion":
                inner = user.called["calls"][0]
                total += _read(program, inner, user.operands.index(name))
            else:
                return math.inf
        return total

    return of(computation.parameter(index))


def _written(program: Program, fused: str, each: Instruction) -> float:
    """Bytes that a fusion writes: its results, of those in place what changes."""
    computation = program.computations[fused]
    root = computation.instructions[computation.root]
    names = root.operands if root.opcode == "tuple" else (root.name,)
    if len(names) != len(each.arrays):
        return _main(each)
    total = 0.0
    for name, array in zip(names, each.arrays, strict=True):
        value = computation.instructions[name]
        while value.opcode == "bitcast":
            value = computation.instructions[value.operands[0]]
        if not array.main:
            continue
        if value.opcode == "dynamic-update-slice":
            update = computation.instructions[value.operands[1]]
            total += sum(part.size for part in update.arrays)
        else:
            total += array.size
    return total


def _collectives(program: Program, each: Instruction) -> list[Collective]:
    """`each` if it is one, or those in the fusion that it is."""
    own = collective(each)
    if own or each.opcode != "fusion":
        return [own] if own else []
    name = each.called["calls"][0]
    computation = program.computations[name]
    inner = computation.instructions.values()
    found = [one for line in inner for one in _collectives(program, line)]
    return as_named(name, computation, found)


def _sent(each: Collective, num_devices: int) -> Traffic:
    group = each.instruction.group_size(num_devices)
    return Traffic(
        collectives={each.kind: each.size},
        sent=sent_bytes(each.kind, each.size, group),
    )
