"""Configs: read from the command line, resolved, checked, kept in the workdir."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from normjax.core.errors import UserError, one_of
from normjax.core.registry import Registry, field_names

CONFIG_FILE = "config.json"


def parse_flags(argv: Sequence[str], define: Any) -> flags.FlagValues:
    """Parse `argv` into flags of their own.

    Args:
      argv: with the program's name first.
      define: function(flag_values) that declares the flags.

    Raises:
      UserError: anything that is wrong with the command line or the config file.
    """
    values = flags.FlagValues()
    define(values)
    try:
        rest = values(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}")
        if "config" in values and values["config"].present:
            values.config  # noqa: B018 - reading it is what loads the file
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from error
    except (OSError, ImportError) as error:
        raise UserError(f"config file: {_one_line(error)}") from error
    return values


def define_config(values: flags.FlagValues) -> None:
    """Declare `--config=FILE:ARGUMENTS` and its overrides `--config.field=value`."""
    config_flags.DEFINE_config_file(
        "config", None, "config file and its arguments", flag_values=values
    )


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


def keep_config(config: ConfigDict, workdir: Path) -> None:
    """Write the config into the workdir, or compare it with the one that is there.

    Raises:
      UserError: the workdir belongs to a run with another config, or cannot be written.
    """
    path, mine = Path(workdir) / CONFIG_FILE, _plain(config)
    if path.exists():
        theirs = json.loads(path.read_text())
        changed = _differences(theirs, mine)
        if changed:
            raise UserError(
                f"workdir {workdir} holds a run with another config "
                f"({'; '.join(changed)}): choose another --workdir"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(mine, indent=2) + "\n")
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error.strerror}") from error


def kept_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`.

    Raises:
      UserError: there is none.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise UserError(f"workdir {workdir} holds no run: no {CONFIG_FILE} in it")
    return ConfigDict(_with_tuples(json.loads(path.read_text())))


def require(config: ConfigDict, field: str, allowed: Sequence[str]) -> str:
    """The value of a field that must be one of `allowed`."""
    value = config[field]
    if value not in allowed:
        raise UserError(one_of(f"config.{field}", value, allowed))
    return value


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
