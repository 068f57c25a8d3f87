"""A compiled program as XLA prints it (HLO), read so far as planning needs it."""

import functools
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS_OF_MESH = re.compile(r"replica_groups=mesh\[(.*?)\][^{]*\{('[^}]*)\}")
_GROUPS_OF_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUPS_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)"
)


class Array(NamedTuple):
    """One array of a result.

    Attributes:
      dtype: as XLA names it, "f32".  shape: of the array.
      size: bytes, without padding.
      main: whether it lies in the main memory of the device, not on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    main: bool


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      operands: names of instructions.  called: names of computations by attribute.
      argument: what stands in the parentheses: the value of a constant, the number of a
        parameter.
      line: all of it.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: dict[str, tuple[str, ...]]
    argument: str
    line: str

    @property
    def channel(self) -> str | None:
        """Of a collective: the same number in all the instructions that it is."""
        found = _CHANNEL.search(self.line)
        return found[1] if found else None

    def group_size(self, num_devices: int) -> int:
        """Of a collective of `num_devices`: how many of them take part together."""
        mesh = _GROUPS_OF_MESH.search(self.line)
        if mesh:
            sizes = dict(re.findall(r"('[^']*')=(\d+)", mesh[1]))
            axes = re.findall(r"'[^']*'", mesh[2])
            return math.prod(int(sizes[axis]) for axis in axes)
        iota = _GROUPS_OF_IOTA.search(self.line)
        if iota:
            return int(iota[1])
        listed = _GROUPS_LISTED.search(self.line)
        return len(listed[1].split(",")) if listed else num_devices


class Computation(NamedTuple):
    """Instructions by name, in order; the last is `root`."""

    instructions: dict[str, Instruction]
    root: str

    def parameter(self, index: int) -> str:
        """The name of a parameter."""
        for each in self.instructions.values():
            if each.opcode == "parameter" and each.argument == str(index):
                return each.name
        raise KeyError(index)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that `name` is an operand of."""
        return [i for i in self.instructions.values() if name in i.operands]


class Program(NamedTuple):
    """Computations by name, and the name of the first."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program that `Compiled.as_text()` shows."""
    computations, entry, name = {}, "", ""
    body: dict[str, Instruction] = {}
    root = ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        found = None if head else _INSTRUCTION.match(line)
        if head:
            name, body, root = head[2], {}, ""
            entry = name if head[1] else entry
        elif found:
            body[found[2]] = _instruction(found, line)
            root = found[2] if found[1] else root
        elif line.startswith("}") and body:
            computations[name] = Computation(body, root)
    return Program(computations, entry)


def _instruction(found: re.Match, line: str) -> Instruction:
    _, name, result, opcode, rest = found.groups()
    argument, attributes = _split(rest)
    called: dict[str, tuple[str, ...]] = {}
    for kind, names in _CALLED.findall(attributes):
        called[kind] = tuple(_NAME.findall(names))
    operands = tuple(_NAME.findall(argument))
    return Instruction(name, opcode, _arrays(result), operands, called, argument, line)


def _split(rest: str) -> tuple[str, str]:
    """What is inside the parenthesis that is open, and what is behind it."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:i], rest[i + 1 :]
    return rest, ""


@functools.lru_cache(maxsize=10_000)
def _arrays(result: str) -> tuple[Array, ...]:
    found = []
    for kind, bits, dims, layout in _ARRAY.findall(result):
        shape = tuple(int(dim) for dim in dims.split(",") if dim)
        size = math.ceil(math.prod(shape) * (8 if kind == "pred" else int(bits)) / 8)
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(kind, shape, size, space is None or space[1] == "0"))
    return tuple(found)


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """How often the body of the `while` instruction runs; None if it does not say.

    Either XLA notes it, or the condition compares a counter that begins with a constant
    with a constant, as `scan` and `fori_loop` do.
    """
    noted = _TRIPS.search(loop.line)
    if noted:
        return int(noted[1])
    condition = program.computations[loop.called["condition"][0]]
    root = condition.instructions[condition.root]
    if root.opcode != "compare" or "direction=LT" not in root.line:
        return None
    begin, end = (_constant(condition, caller, loop, name) for name in root.operands)
    return None if begin is None or end is None else max(end - begin, 0)


def _constant(
    condition: Computation, caller: Computation, loop: Instruction, name: str
) -> int | None:
    """The value of `name` in the condition before the first turn of the loop."""
    value = condition.instructions[name]
    if value.opcode == "get-tuple-element":
        index = re.search(r"index=(\d+)", value.line)
        start = caller.instructions[loop.operands[0]]
        if index is None or start.opcode != "tuple":
            return None
        value = caller.instructions[start.operands[int(index[1])]]
        while value.opcode in ("copy", "bitcast"):
            value = caller.instructions[value.operands[0]]
    known = value.opcode == "constant" and re.fullmatch(r"-?\d+", value.argument)
    return int(value.argument) if known else None
