"""The runs of a study: which ones, how long, and what they gave."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.files import exists
from normjax.records.json_files import read_json, write_json
from normjax.train.loop import train
from normjax.train.nonfinite import NonFiniteLoss

RESULT_FILE = "result.json"
STEPS_FILE = "steps.json"
FEWEST = 0.25
"""Least part of the steps that a budget leaves."""

Measure = Callable[[int, Path], Mapping[str, float]]
"""Of a seed and a folder: numbers by name. For what is no plain training."""


class Share(NamedTuple):
    """Every `of`-th run, from `index`."""

    index: int = 0
    of: int = 1


WHOLE = Share()


def once(what: ConfigDict | Measure, seed: int, folder: Path) -> dict[str, Any]:
    """The result of one run, with its `seconds`; read where it is done already.

    A run that diverges has an `error` instead of metrics.

    Raises:
      UserError: a wrong config, or stopped by a signal.
    """
    path = folder / RESULT_FILE
    if exists(path):
        return read_json(path)
    began = time.monotonic()
    try:
        console.quiet = True
        if isinstance(what, ConfigDict):
            config: Any = what.copy_and_resolve_references()
            config.seed = seed
            found: Mapping[str, Any] | None = train(config, folder)
        else:
            found = what(seed, folder)
    except NonFiniteLoss as error:
        found = {"error": f"diverged: {str(error).split(' (')[0]}"}
    finally:
        console.quiet = False
        # Hundreds of compiled programs would stay in memory.
        jax.clear_caches()
    if found is None:
        raise UserError("stopped by a signal; the same command goes on")
    result = {**found, "seconds": round(time.monotonic() - began, 1)}
    write_json(path, result)
    return result


def shortened(what: ConfigDict | Measure, part: float) -> ConfigDict | Measure:
    """A config with `part` of its steps; measurements are left as they are."""
    if part == 1 or not isinstance(what, ConfigDict):
        return what
    config: Any = what.copy_and_resolve_references()
    with config.unlocked():
        for node, name in (
            (config, "total_steps"),
            (config, "eval_every"),
            (config.checkpoint, "every"),
        ):
            node[name] = max(1, round(part * node[name]))
    return config


def part_of_steps(
    first: ConfigDict | Measure, runs: int, minutes: float, workdir: Path
) -> float:
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
