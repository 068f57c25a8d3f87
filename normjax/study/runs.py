"""The runs of a study: which ones, how long, and what they gave."""

import hashlib
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from normjax.core.console import console
from normjax.core.errors import UserError, one_of
from normjax.core.files import exists
from normjax.records.json_files import read_json, write_json
from normjax.study.cells import Measure
from normjax.study.measures import MEASURES
from normjax.train.loop import train
from normjax.train.nonfinite import NonFiniteLoss

RESULT_FILE = "result.json"
STEPS_FILE = "steps.json"
FEWEST = 0.25
"""Least part of the steps that a budget leaves."""


Run = Any
"""A cell: a config, which is trained, or a `Measure`."""


class Share(NamedTuple):
    """Every `of`-th run, from `index`."""

    index: int = 0
    of: int = 1


WHOLE = Share()


def once(what: Run, seed: int, folder: Path) -> dict[str, Any]:
    """The result of one run, with its `seconds`; read where it is done already.

    A run that diverges has an `error` instead of metrics.

    Raises:
      UserError: a wrong config, a result of another one, or stopped by a signal.
    """
    path, cell = folder / RESULT_FILE, _digest(what)
    if exists(path):
        done = read_json(path)
        if done.get("cell", cell) != cell:
            raise UserError(
                f"{path} is of a cell that the study has changed since: "
                "delete its folder, or choose another --workdir"
            )
        return done
    began = time.monotonic()
    try:
        console.quiet = True
        found: dict[str, Any] | None = {}
        measure = what if isinstance(what, Measure) else None
        config = measure.config if measure else what
        if config is not None:
            found = _trained(config, seed, folder)
        if measure and found is not None:
            function = MEASURES.get(measure.name)
            if function is None:
                raise UserError(one_of("measure", measure.name, MEASURES))
            found.update(function(seed, folder, **measure.arguments))
    except NonFiniteLoss as error:
        found = {"error": f"diverged: {str(error).split(' (')[0]}"}
    finally:
        console.quiet = False
        # Hundreds of compiled programs would stay in memory.
        jax.clear_caches()
    if found is None:
        raise UserError("stopped by a signal; the same command goes on")
    result = {**found, "seconds": round(time.monotonic() - began, 1), "cell": cell}
    write_json(path, result)
    return result


def _trained(config: Any, seed: int, folder: Path) -> dict[str, float] | None:
    config = config.copy_and_resolve_references()
    config.seed = seed
    return train(config, folder)


def _digest(what: Run) -> str:
    """The same as long as a cell's config, measure and arguments are."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def shortened(what: Run, part: float) -> Run:
    """A cell with `part` of its training steps."""
    if isinstance(what, Measure):
        if what.config is None:
            return what
        return what._replace(config=shortened(what.config, part))
    config = what.copy_and_resolve_references()
    with config.unlocked():
        for node, name in (
            (config, "total_steps"),
            (config, "eval_every"),
            (config, "diagnostics_every"),
            (config.checkpoint, "every"),
        ):
            if node[name]:
                node[name] = max(1, round(part * node[name]))
    return config


def part_of_steps(first: Run, runs: int, minutes: float, workdir: Path) -> float:
    """The part of their steps that `runs` runs have time for; the same ever after.

    A pilot tells: the first run, in a folder of its own.

    Args:
      runs: of one process, with one seed.
    """
    path = workdir / STEPS_FILE
    if not exists(path):
        seconds = once(first, 0, workdir / "pilot")["seconds"]
        part = 60 * minutes / max(seconds * runs, 1e-9)
        write_json(path, {"part": max(FEWEST, min(1.0, math.floor(20 * part) / 20))})
    return read_json(path)["part"]
