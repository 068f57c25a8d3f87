"""The parts of a model: what each holds, and what it computes for one example."""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from normjax.core.operations import inner_jaxprs, multiply_adds_of

SCREEN = 15
"""Rows at most: of more, the parts of layers are not told apart."""

OTHER = "other"
"""What is computed outside the modules with parameters: pooling, masks."""

Path = tuple[str, ...]


class Part(NamedTuple):
    """Modules of one name, whose numbers are left out.

    Attributes:
      name: "blocks mlp".  number: modules.  parameters: of all of them.
      multiply_adds: of the matrix products and convolutions for one example.
    """

    name: str
    number: int
    parameters: int
    multiply_adds: int


def parts_of(params: Mapping[str, Any], jaxpr: Any) -> list[Part]:
    """The parts of a model in the order in which they compute; their sums are its own.

    Args:
      params: of the model, or their shapes.
      jaxpr: of a call with one example, whose equations know their modules.
    """
    work = collections.Counter[Path]()
    for path, count in _equations(jaxpr, params, ()):
        work[path] += count
    flat: Any = flatten_dict(dict(params))
    sizes = collections.Counter[Path]()
    for path, leaf in flat.items():
        sizes[path[: 2 if len(path) > 2 else 1]] += math.prod(leaf.shape)
    layers = {p[0] for p in flat if re.search(r"(\d|blocks)$", p[0])}
    views = (
        (2, r"_?\d+$"),  # parts of the layers of a stage
        (1, r"_?\d+$"),  # stages
        (2, r"[_\d]+$"),  # parts of all layers
        (1, r"[_\d]+$"),
    )
    rows: list[Part] = []
    for depth, numbers in views:
        rows = _grouped(work, sizes, layers, depth, numbers)
        if len(rows) <= SCREEN:
            break
    return rows


def _equations(
    jaxpr: Any, params: Mapping[str, Any], outer: Path, times: int = 1
) -> Iterator[tuple[Path, int]]:
    """The modules, two deep at most, and the multiply-adds of each equation."""
    for equation in jaxpr.eqns:
        path = (*outer, *str(equation.source_info.name_stack).split("/"))
        module = _module(path, params)
        inner = inner_jaxprs(equation.params)
        one_of_many = equation.primitive.name in ("cond", "shard_map")
        if inner and len(module) < 2 and not one_of_many:
            for jaxpr_within in inner:
                length = times * equation.params.get("length", 1)
                yield from _equations(jaxpr_within, params, path, length)
        else:
            count = times * multiply_adds_of(equation)
            if module or count:
                yield module, count


def _module(path: Path, params: Mapping[str, Any]) -> Path:
    """The outermost module with parameters on a path, and the one within it."""
    for i, name in enumerate(path):
        if name in params:
            within = params[name] if isinstance(params[name], Mapping) else {}
            # Between them stand methods, as in "blocks_0/blocks_0._run/mixer".
            inner = [n for n in path[i + 1 :] if isinstance(within.get(n), Mapping)]
            return (name, *inner[:1])
    return ()


def _grouped(
    work: collections.Counter[Path],
    sizes: collections.Counter[Path],
    layers: set[str],
    depth: int,
    numbers: str,
) -> list[Part]:
    """Rows by names without numbers; layers alone have parts of their own."""
    modules = collections.defaultdict[str, set[Path]](set)
    counts = collections.defaultdict[str, list[int]](lambda: [0, 0])
    for path in dict.fromkeys((*work, *sizes)):
        deep = path[: depth if path and path[0] in layers else 1]
        name = " ".join(re.sub(numbers, "", one) for one in deep) or OTHER
        modules[name].add(deep)
        counts[name][0] += sizes[path]
        counts[name][1] += work[path]
    rows = [Part(name, len(modules[name]), *counts[name]) for name in counts]
    return [row for row in rows if row.parameters or row.multiply_adds]
