"""The fields of a run's config by dotted name: defaults, and what absent ones meant.

They are declared in `sections`. No jax, flax or numpy here: recipes begin with these.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from normjax.config.declare import Field, fields, sections
from normjax.config.sections import RUNS, Run


def default_config(task: str = "") -> ConfigDict:
    """Every field of a run of `task` with its default; "": those of all runs."""
    config: Any = ConfigDict(dataclasses.asdict(RUNS.get(task, Run)()))
    config.task = task
    return config


def fill(config: Any, defaults: Any = None) -> None:
    """Give the fields that `config` leaves out their defaults."""
    if defaults is None:
        defaults = default_config(config.get("task", ""))
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict):
            fill(config[name], value)


@functools.cache
def fields_of(task: str) -> Mapping[str, Field]:
    """Every field of a run but those that only its model has."""
    return {
        f"{prefix}.{name}" if prefix else name: field
        for prefix, section in sections(RUNS.get(task, Run))
        for name, field in fields(section).items()
    }


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """`config` of a run with what its absent fields meant; `config` stays as it is."""
    task = config.get("task", fields(Run)["task"].absent)
    return _filled(config, {name: f.absent for name, f in fields_of(task).items()})


def _filled(given: Mapping[str, Any], absent: Mapping[str, Any]) -> dict[str, Any]:
    whole, below = dict(given), {}
    for name, value in absent.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = value
        else:
            whole.setdefault(first, value)
    for name, values in below.items():
        node = whole.get(name, {})
        if isinstance(node, Mapping):
            whole[name] = _filled(node, values)
    return whole
