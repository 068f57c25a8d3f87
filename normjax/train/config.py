"""Configs: read from the command line, resolved, checked, kept in the workdir."""

import dataclasses
import glob
import importlib.machinery
import json
import os
import re
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from normjax.core.errors import UserError, one_of
from normjax.core.registry import Registry, field_names

CONFIG_FILE = "config.json"

NONFINITE_POLICIES = ("stop", "skip", "roll_back")

FREE = ("mesh", "sharding", "profile_steps", "nonfinite")
"""Fields that change nothing in the result of a sound run: it may go on with others."""


def load_config(spec: str) -> ConfigDict:
    """The locked config of `FILE[:ARGUMENTS]`.

    Raises:
      UserError: no such file, or whatever goes wrong in it, with the line.
    """
    path, _, arguments = spec.partition(":")
    config = load_module(path, "get_config", *filter(None, [arguments]))
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"config file {path}: get_config gives a {kind}, no ConfigDict")
    return config.lock()


def load_module(path: str, function: str, *arguments: str) -> Any:
    """What `function(*arguments)` of the Python file at `path` gives.

    Raises:
      UserError: no such file, or whatever goes wrong in it, with the line.
    """
    if not os.path.isfile(path):  # which raises nothing, whatever the name
        folder = glob.escape(os.path.dirname(path))
        beside = glob.glob(os.path.join(folder, "*.py"))
        raise UserError(one_of("config file", path, beside))
    loader = importlib.machinery.SourceFileLoader("config_file", path)
    module = types.ModuleType(loader.name)
    try:
        loader.exec_module(module)
        return getattr(module, function)(*arguments)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        line = getattr(error, "lineno", None) or (lines or [1])[-1]
        kind, text = type(error).__name__, getattr(error, "msg", error)
        raise UserError(f"config file {path}, line {line}: {kind}: {text}") from error


_PARSERS = {
    kind: parser().parse
    for kind, parser in (
        (bool, flags.BooleanParser),
        (float, flags.FloatParser),
        (int, flags.IntegerParser),
    )
}


class _ConfigFile(flags.ArgumentParser):
    """Reads the value of --config and checks the overrides, in words of our own."""

    def __init__(self, argv: Sequence[str]):
        override = re.compile(
            r"--?(?:no)?config\.([^=\[]+)(\[.*?)?(?:=(.*))?$", re.DOTALL
        )
        matches = map(override.match, argv)
        self._overrides = [match.groups() for match in matches if match]

    def parse(self, argument: str) -> ConfigDict:
        config = load_config(argument)
        for field, index, text in self._overrides:
            node: Any = config
            path = "config"
            for name in field.split("."):
                if not isinstance(node, ConfigDict):
                    raise UserError(f"{path} is a value and has no field {name!r}")
                if name not in node:
                    _add_argument(node, path, name)
                node, path = node[name], f"{path}.{name}"
            if index:
                if not isinstance(node, list | tuple):
                    raise UserError(f"{path} is no list: {index}")
                continue
            try:
                parse = _PARSERS.get(type(node), str)
                parse(text or "1")
            except (TypeError, ValueError):
                kind = type(node).__name__
                message = f"{path} takes a value of type {kind}: {text!r}"
                raise UserError(message) from None
        return config


def _add_argument(node: ConfigDict, path: str, name: str) -> None:
    """Give a component its argument `name`, at the default of the class it names.

    So `--config.model.norm.momentum=0.95` works where the file leaves the default.

    Raises:
      UserError: there is no such field, or none that a command line can give.
    """
    arguments = _component_arguments(node, path)
    if name not in arguments:
        raise UserError(one_of(f"field of {path}:", name, {*node, *arguments}))
    with node.unlocked():
        node[name] = arguments[name]


def _component_arguments(node: ConfigDict, path: str) -> dict[str, Any]:
    """Defaults of the plain arguments of the component that `node` describes."""
    if not path.startswith("config.model") or "name" not in node:
        return {}
    from normjax.models import COMPONENTS, MODELS

    registry = COMPONENTS.get(path.rpartition(".")[2], MODELS)
    if node["name"] not in registry:
        return {}
    make: Any = registry[str(node["name"])].make
    fields = dataclasses.fields(make)
    defaults = {f.name: f.default for f in fields}
    plain = {
        k: v for k, v in defaults.items() if isinstance(v, bool | int | float | str)
    }
    steps = [
        name.removesuffix("_steps") for name in defaults if name.endswith("_steps")
    ]
    return {**plain, **{f"{name}_fraction": 0.0 for name in steps}}


def parse_flags(argv: Sequence[str], define: Any) -> flags.FlagValues:
    """Parse `argv` into flags of their own.

    Args:
      argv: with the program's name first.
      define: function(flag_values) that declares the flags.

    Raises:
      UserError: anything that is wrong with the command line or the config file.
    """
    values = flags.FlagValues()
    try:
        define(values)
        rest = values(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}")
    except UserError:
        raise
    except Exception as error:  # two libraries, neither of which says what it raises
        if isinstance(error.__context__, UserError):  # flags wraps what parsers raise
            raise error.__context__ from None
        raise UserError(_one_line(error)) from error
    return values


def define_config(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Declare `--config=FILE:ARGUMENTS` and its overrides `--config.field=value`.

    Args:
      argv: the command line, which says what overrides there are.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        "config file and its arguments",
        flag_values=values,
        sys_argv=list(argv),
    )
    values["config"].parser = _ConfigFile(argv)


def resolve_fractions(registry: Registry, spec: dict, total_steps: int) -> dict:
    """`spec` with every `x_fraction` turned into `x_steps` = round(x * total_steps).

    Only for variants that take `x_steps`; a fraction beside its steps is refused.

    Raises:
      UserError: both are given, or a fraction outside [0, 1].
    """
    fields, resolved = field_names(registry[spec["name"]].make), {}
    for key, value in spec.items():
        steps = key.removesuffix("_fraction") + "_steps"
        if not key.endswith("_fraction") or steps not in fields:
            resolved[key] = value
            continue
        if steps in spec:
            raise UserError(f"{registry.kind}: give {key} or {steps}, not both")
        if not 0 <= value <= 1:
            raise UserError(f"{registry.kind}: {key} must lie in [0, 1], got {value}")
        resolved[steps] = round(value * total_steps)
    return resolved


def keep_config(config: ConfigDict, workdir: Path, *, write: bool = True) -> None:
    """Write the config into the workdir, or compare it with the one that is there.

    What is there stays; the fields of `FREE` may differ from it.

    Args:
      write: of several processes one writes.

    Raises:
      UserError: the workdir belongs to a run with another config, or cannot be written.
    """
    path, mine = Path(workdir) / CONFIG_FILE, _plain(config)
    if path.exists():
        kept = read_json(path)
        same = {name: mine.get(name) for name in FREE}
        changed = _differences({**kept, **same}, mine)
        if changed:
            raise UserError(
                f"workdir {workdir} holds a run with another config "
                f"({'; '.join(changed)}): choose another --workdir"
            )
        return
    if write:
        write_json(path, mine)


def kept_config(workdir: Path) -> Any:
    """The config of the run in `workdir`.

    Raises:
      UserError: there is none.
    """
    path = Path(workdir) / CONFIG_FILE
    if not os.path.exists(path):
        raise UserError(f"workdir {workdir} holds no run: no {CONFIG_FILE} in it")
    return ConfigDict(_with_tuples(read_json(path)))


def nonfinite_policy(config: Any) -> tuple[str, int]:
    """`config.nonfinite`: its policy, and how often that may be needed.

    Raises:
      UserError: an unknown policy, or a negative limit.
    """
    # Configs of older runs have no such field.
    fields = config.get("nonfinite") or {"policy": "stop", "limit": 0}
    policy, limit = fields["policy"], fields["limit"]
    if policy not in NONFINITE_POLICIES:
        what = "config.nonfinite.policy"
        raise UserError(one_of(what, policy, NONFINITE_POLICIES))
    if limit < 0:
        raise UserError(f"config.nonfinite.limit must be at least 0, got {limit}")
    return policy, limit


def require(config: Any, field: str, allowed: Sequence[str]) -> str:
    """The value of a field that must be one of `allowed`."""
    value = config[field]
    if value not in allowed:
        raise UserError(one_of(f"config.{field}", value, allowed))
    return value


def write_json(path: Path, value: dict) -> None:
    """Write a file of the workdir, complete or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"workdir {path.parent}: {error.strerror}") from error


def read_json(path: Path) -> dict:
    """What `write_json` wrote.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {_one_line(error)}") from error


def _plain(config: ConfigDict) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def _with_tuples(value: Any) -> Any:
    """JSON knows lists only, configs tuples only."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _differences(old: Any, new: Any, path: str = "config") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        missing = "absent"
        return [
            line
            for key in keys
            for line in _differences(
                old.get(key, missing), new.get(key, missing), f"{path}.{key}"
            )
        ]
    return [] if old == new else [f"{path} is {old} there and {new} here"]


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text.split())
