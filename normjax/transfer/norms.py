"""Norms of which one replaces another: a progressive norm has both inside.

So what lies at "norm1/scale" in one model may be "norm1/layer_norm/scale" or
"norm1/batch_norm/scale" of another one.
"""

from collections.abc import Collection

import numpy as np

from normjax.core.collections import BATCH_STATS, COUNTER, PARAMS
from normjax.transfer.source import Source
from normjax.transfer.wanted import Wanted, name_of

LAYER, BATCH = "layer_norm", "batch_norm"
LEAVES = ("scale", "bias", "alpha", "mean", "var")
"""Names of the arrays of norms."""


def is_counter(path: str) -> bool:
    """Whether it counts the updates of a schedule."""
    return path.startswith(f"{BATCH_STATS}/") and path.endswith(f"/{COUNTER}")


def counter(path: str, source: Source, wanted: Wanted) -> tuple[np.ndarray, str]:
    """Updates that a norm has counted when the run begins, and in words.

    "continue" takes as large a share of the schedule as was done there.
    """
    then, end, made = source.arrays.get(path), wanted.end, 0
    if wanted.schedule == "ended":
        made = end or (0 if then is None else int(then))
    elif wanted.schedule == "continue" and then is not None:
        made = int(then)
        if end and source.end:
            over = made >= source.end
            made = end if over else min(round(made / source.end * end), end - 1)
    of = f" of {end:,}" if end else ""
    how = f"{wanted.schedule}: {made:,}{of} updates done"
    return np.full(wanted.shapes[path], made, np.int32), how


def places(path: str, source: Source, wanted: Wanted) -> list[str]:
    """Where an array of the model may be in the source, the likeliest first."""
    head, _, leaf = path.rpartition("/")
    outer, _, last = head.rpartition("/")
    inside = BATCH if _is_batch_norm(head, wanted.shapes) else LAYER
    found = [path, f"{head}/{inside}/{leaf}"]
    if last in (LAYER, BATCH):
        alone = BATCH if _is_batch_norm(outer, source.arrays) else LAYER
        found += [f"{outer}/{leaf}"] if alone == last else []
    return found


def why_new(path: str, source: Source) -> str:
    """Why a norm of the model has no such array in the source, or ""."""
    head = path.rpartition("/")[0]
    outer, _, last = name_of(head).rpartition("/")
    there = any(f"{PARAMS}/{outer}/{leaf}" in source.arrays for leaf in LEAVES)
    return f"the source has no {last} here" if last in (LAYER, BATCH) and there else ""


def why_left(path: str, wanted: Wanted) -> str:
    """Why a norm of the source has arrays that the model's lacks, or ""."""
    *modules, leaf = name_of(path).split("/")
    for branch in (LAYER, BATCH):
        if branch in modules:
            outer = modules[: modules.index(branch)]
            if _has_norm("/".join(outer), wanted.shapes):
                return f"the model has no {branch} here"
    if leaf in (*LEAVES, COUNTER) and _has_norm("/".join(modules), wanted.shapes):
        return "the norm of the model has none"
    return ""


def _is_batch_norm(module: str, arrays: Collection[str]) -> bool:
    return f"{BATCH_STATS}/{name_of(module)}/mean" in arrays


def _has_norm(module: str, arrays: Collection[str]) -> bool:
    start = f"{PARAMS}/{module}/"
    return any(p.startswith(start) and p.rpartition("/")[2] in LEAVES for p in arrays)
