"""The program of one kernel of a TPU as libtpu dumps it, bundle by bundle.

A bundle is what a core issues in one cycle: one operation for each slot of its units.
`final_bundles` has a line a bundle, `>` for every loop around it; the file of the
utilization, in the same order, how many slots of each unit a bundle fills.
"""

import math
import re
from typing import NamedTuple

UNITS = {
    "MXU": "matrix unit",
    "XLU": "transposing unit",
    "VALU": "vector unit",
    "EUP": "transcendental unit",
    "VLOAD": "loads",
    "VSTORE": "stores",
}
"""Units by the name in the dump; the scalar unit waits for all of them."""

ROWS = {"f32": 8}
"""Rows that one product takes, by its type; of narrower ones `PACKED_ROWS`."""

PACKED_ROWS = 16

_PRODUCT = re.compile(r"vmatmul(?:\.mubr|\.subr)?\.(\w+)[\w.]*\.mxu(\d)")
_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?:(\w\w):|:) *((?:> ?)*)\{(.*)")
_EXIT = re.compile(
    r"%p\w+ = scmp\.ge\.s32\.totalorder (?:\([^)]*\), )?(%s\d+)_s\d+, ([^ ;}]+)"
)
_STEP = re.compile(r"(%s\d+)_s\d+ = sadd\.s32 (?:\([^)]*\), )?(\d+), %s")
_PHI = re.compile(r"= sphi (%s\d+)_s\d+, (%s\d+)_s\d+")
_COPY = re.compile(r"(%s\d+)_s\d+ = smov (%s\d+)_s\d+")
_STAGE = re.compile(r"iteration index, stage = (\d+)")
_GRID = re.compile(r"^iteration_bounds: \(([\d, ]+)\)", re.MULTILINE)
_MOVE = re.compile(r"(%s\d+)_s\d+ = smov (?:\([^)]*\), )?(\d+)")


class Kernel(NamedTuple):
    """One run of a kernel.

    Attributes:
      cycles: bundles that are issued, or those in which its matrix units take the rows
        that they are given, if that is longer: the scheduler may place products closer
        than the published peak of the chip allows.
      busy: the share of its slots that a unit fills in these cycles, by `UNITS`.
      unknown_loops: whose turns only the running program knows; they count once.
    """

    cycles: float
    busy: dict[str, float]
    unknown_loops: int = 0


class _Loop(NamedTuple):
    begin: int
    end: int
    trips: int | None


def read_kernel(
    bundles: str, utilization: str, turns: int | None = None, rows: int = 1
) -> Kernel:
    """What `bundles` issue, loops by their trips.

    Args:
      bundles: the file `final_bundles`.
      utilization: the file `final_hlo-static-per-bundle-utilization`; "": not known.
      turns: what the outer loop computes in. It runs one to two trips more, in which
        it only moves the first operands and the last results; None: what its copies
        say of the grid, and if there are none, so many less as it has stages that are
        behind the first.
      rows: that a matrix unit takes a cycle.
    """
    lines = [found for line in bundles.splitlines() if (found := _BUNDLE.match(line))]
    loops = _loops(lines)
    times = [1] * len(lines)
    turns = _grid(bundles) if turns is None else turns
    outer = -1
    for loop in loops:
        trips = 1 if loop.trips is None else loop.trips
        if loop.begin > outer:  # not inside the one before
            outer = loop.end
            if turns is not None and turns < trips <= turns + 2:
                trips = turns
            elif turns is None:
                trips = max(trips - _stages(lines, loop), 1)
        for index in range(loop.begin, loop.end + 1):
            times[index] *= trips
    cycles = max(float(sum(times)), _product_cycles(lines, times) / rows)
    unknown = sum(loop.trips is None for loop in loops)
    return Kernel(cycles, _busy(utilization, times, cycles), unknown)


def _loops(lines: list[re.Match[str]]) -> list[_Loop]:
    """All loops in the order in which they begin."""
    found: list[tuple[int, int]] = []
    around: list[list[int]] = []  # first and last bundle of loops that may go on
    for index, line in enumerate(lines):
        mark, depth = line[1], line[2].count(">")
        if not depth and line[3].startswith("}"):
            continue  # of empty bundles no depth is written
        if mark == "LB" and not depth:  # nor of one that only names what turns change
            later = (after[2].count(">") for after in lines[index + 1 :])
            depth = next(filter(None, later), 1)
        if mark == "LB":
            found.extend((begin, end) for begin, end in around[depth - 1 :])
            around[depth - 1 :] = [[index, index]]
        # A bundle may have an operation of the loop around alone, amid those of a loop.
        for loop in around[:depth]:
            loop[1] = index
    found.extend((begin, end) for begin, end in around)
    found.sort(key=lambda loop: (loop[0], -loop[1]))
    return [_Loop(*loop, _trips(lines, *loop)) for loop in found]


def _grid(bundles: str) -> int | None:
    found = _GRID.search(bundles)
    return math.prod(map(int, found[1].split(","))) if found else None


def _stages(lines: list[re.Match[str]], loop: _Loop) -> int:
    body = "\n".join(line[3] for line in lines[loop.begin : loop.end + 1])
    return max(map(int, _STAGE.findall(body)), default=0)


def _trips(lines: list[re.Match[str]], begin: int, end: int) -> int | None:
    """How often the bundles from `begin` to `end` run; None: that is not constant."""
    body = "\n".join(line[3] for line in lines[begin : end + 1])
    copies = dict(_COPY.findall(body))
    phis = _PHI.findall(body)
    starts = {copies.get(after, after): before for before, after in phis}
    exits = [found for found in _EXIT.findall(body) if found[0] in starts]
    if not exits or not exits[-1][1].isdigit():
        return None
    counter, bound = exits[-1]
    steps = [step for name, step in _STEP.findall(body) if name == counter]
    before = "\n".join(line[3] for line in lines[:begin])
    first = [value for name, value in _MOVE.findall(before) if name == starts[counter]]
    if not steps or not first:
        return None
    return max(math.ceil((int(bound) - int(first[-1])) / int(steps[-1])), 1)


def _product_cycles(lines: list[re.Match[str]], times: list[int]) -> float:
    """Rows that the busiest matrix unit is given."""
    units: dict[str, float] = {}
    for count, line in zip(times, lines, strict=True):
        for kind, unit in _PRODUCT.findall(line[3]):
            rows = ROWS.get(kind, PACKED_ROWS)
            units[unit] = units.get(unit, 0) + count * rows
    return max(units.values(), default=0.0)


def _busy(utilization: str, times: list[int], cycles: float) -> dict[str, float]:
    table = [line for line in utilization.splitlines() if line and line[0] != "="]
    if not table or not cycles:
        return {}
    names = [name.strip() for name in table[0].split(",")]
    slots = [int(count) for count in table[1].split()]
    totals = [0] * len(names)
    for count, row in zip(times, table[2:], strict=False):
        for index, used in enumerate(row.split()):
            totals[index] += count * int(used)
    return {
        name: total / (capacity * cycles)
        for name, capacity, total in zip(names, slots, totals, strict=True)
        if name in UNITS
    }
