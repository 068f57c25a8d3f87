"""What a compiled program sends between devices, read from its text."""

import math
import re

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

ALL_REDUCE_SCATTER = "all-reduce-scatter"
"""Begins the names of the fusions in which TPUs reduce and keep a part."""

_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SCATTER = re.compile(rf"^%{ALL_REDUCE_SCATTER}[\w.\-]* \(.*\) -> (.*) \{{$")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


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
    part = None
    for line in compiled_text.splitlines():
        if line.endswith("{"):
            part = _SCATTER.match(line)
        call, channel = _CALL.search(line), _CHANNEL.search(line)
        if call is None or (channel and channel[1] in channels):
            continue
        if channel:
            channels.add(channel[1])
        result, kind, start = call.groups()
        if part:
            result, kind = part[1], "reduce-scatter"
        sizes = [_bytes_of(*shape) for shape in _SHAPE.findall(result)]
        if start and kind in ("all-gather", "collective-permute"):
            # Asynchronous ones hand on (operands, results, counters).
            count = (len(sizes) - result.count("u32[]")) // 2
            sizes = sizes[count : 2 * count]
        found[kind] = found.get(kind, 0) + sum(sizes)
    return found


def _bytes_of(dtype: str, bits: str, dims: str) -> int:
    elements = math.prod(int(dim) for dim in dims.split(",") if dim)
    return math.ceil(elements * (8 if dtype == "pred" else int(bits)) / 8)
