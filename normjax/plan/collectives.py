"""What a compiled program sends between devices, read from its text."""

from collections.abc import Iterable
from typing import NamedTuple

from normjax.plan.hlo import Computation, Instruction, parse

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_ALL_REDUCE_SCATTER = "all-reduce-scatter"
"""Begins the names of the fusions in which TPUs reduce and keep a part."""


class Collective(NamedTuple):
    """One instruction that sends.

    Attributes:
      kind: of `KINDS`.  size: bytes of its result.
    """

    kind: str
    size: int
    instruction: Instruction


def collective_bytes(compiled_text: str) -> dict[str, int]:
    """Bytes of the results of all collectives of a program on one device, by kind.

    An all-reduce counts the array that is reduced, an all-gather the whole that is
    gathered, a reduce-scatter the part that is left, also where it stands as an
    all-reduce and a slice in one fusion. A collective in the body of a loop counts
    once, however often the loop runs, and so does one that the compiler has spread over
    several fusions (by its channel).

    Args:
      compiled_text: `Compiled.as_text()`, HLO behind the partitioner.

    Returns:
      every kind that occurs, of `KINDS`.
    """
    found: dict[str, int] = {}
    channels: set[str] = set()
    for name, computation in parse(compiled_text).computations.items():
        sent = filter(None, map(collective, computation.instructions.values()))
        for one in as_named(name, computation, sent):
            channel = one.instruction.channel
            if channel not in channels:
                found[one.kind] = found.get(one.kind, 0) + one.size
            channels |= {channel} if channel else set()
    return found


def collective(each: Instruction) -> Collective | None:
    """What `each` sends, if it is a collective; the end of one sends nothing more."""
    kind = each.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    arrays = each.arrays
    if kind != each.opcode and kind in ("all-gather", "collective-permute"):
        # Asynchronous ones hand on (operands, results, counters).
        counters = sum(a.dtype == "u32" and not a.shape for a in arrays)
        count = (len(arrays) - counters) // 2
        arrays = arrays[count : 2 * count]
    return Collective(kind, sum(array.size for array in arrays), each)


def as_named(
    name: str, computation: Computation, found: Iterable[Collective]
) -> list[Collective]:
    """The collectives `found` in a computation, as what its name says that they are."""
    if not name.startswith(_ALL_REDUCE_SCATTER):
        return list(found)
    root = computation.instructions[computation.root]
    part = sum(array.size for array in root.arrays)
    return [Collective("reduce-scatter", part, one.instruction) for one in found]
