"""The config of a run: kept in its workdir, compared when it goes on, resolved."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from normjax.config.check import require as require
from normjax.config.fields import complete, fields_of
from normjax.config.overrides import Override, override
from normjax.config.recipes import load_config as load_config  # found here, too
from normjax.config.sections import MODEL
from normjax.core.arguments import field_names
from normjax.core.errors import UserError, one_of
from normjax.core.files import exists, reason
from normjax.core.paths import workdir_path
from normjax.core.registry import Registry
from normjax.records.json_files import read_json, with_tuples, write_json

CONFIG_FILE = "config.json"


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


def first_total(config: Any) -> int:
    """The updates that fractions of a run are of: all, of a run that was not extended.

    Args:
      config: of a run, also one that lacks the field.
    """
    return config.get("fractions_of", 0) or config["total_steps"]


def optim_of(config: Any) -> dict[str, Any]:
    """`config.optim` whose warmup is as long as before the run was extended."""
    fields, total = dict(config.optim), config.total_steps
    if first_total(config) != total and "warmup_fraction" in fields:
        steps = round(fields["warmup_fraction"] * first_total(config))
        fields["warmup_fraction"] = steps / total
    return fields


def keep_config(config: ConfigDict, workdir: Path, *, write: bool = True) -> None:
    """Write the config into the workdir, after comparing it with the one there.

    Fields of the start and of the machine may differ (see `fields`), and a run may be
    extended: what is kept is what the run was started with last.

    Raises:
      UserError: the workdir belongs to a run with another config, or cannot be written.
    """
    path, mine = workdir_path(workdir) / CONFIG_FILE, plain(config)
    kept = read_json(path) if config_exists(workdir) else None
    if kept is not None:
        then, now = _said(kept), _said(mine)
        if _extends(then, now):
            then |= {name: now[name] for name in ("total_steps", "fractions_of")}
        changed = differences(then, now)
        if changed:
            raise UserError(
                f"workdir {workdir} holds a run with another config "
                f"({'; '.join(changed)}): go on with that run by --workdir alone, "
                "without --config; for this config choose another --workdir"
            )
    if write and mine != kept:
        write_json(path, mine)


def config_exists(workdir: Path) -> bool:
    """Whether the folder holds a run, begun or not.

    Raises:
      UserError: it is in a bucket that cannot be read.
    """
    try:
        return exists(workdir_path(workdir) / CONFIG_FILE)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {reason(error)}") from error


def kept_config(
    workdir: Path,
    overrides: Iterable[Override] = (),
    reads: Sequence[str] | None = None,
) -> Any:
    """The config of the run in `workdir`; a field that it lacks is as it was then.

    Args:
      overrides: set in it.
      reads: fields and sections that the command makes use of: no other may be set, nor
        one that says what the run is. None: any may.

    Raises:
      UserError: there is none, or an override that is not allowed.
    """
    if not config_exists(workdir):
        raise UserError(f"workdir {workdir} holds no run: no {CONFIG_FILE} in it")
    kept = read_json(workdir_path(workdir) / CONFIG_FILE)
    config: Any = ConfigDict(_whole(kept))
    overrides = list(overrides)
    if reads is not None:
        free = [name for name, f in fields_of(config.task).items() if f.read]
        allowed = [n for n in free if n in reads or n.partition(".")[0] in reads]
        for one in overrides:
            if one.field not in allowed:
                raise UserError(
                    one_of("config field of this command:", one.field, allowed)
                )
    return override(config, overrides)


def nonfinite_policy(config: Any) -> tuple[str, int]:
    """`config.nonfinite`: its policy, and how often that may be needed.

    Raises:
      UserError: an unknown policy, or a negative limit.
    """
    return require(config, "nonfinite.policy"), require(config, "nonfinite.limit")


def plain(config: ConfigDict) -> dict:
    """`config` as its file holds it: dicts, lists and values of JSON."""
    return json.loads(json.dumps(config.to_dict()))


def _whole(kept: dict) -> dict[str, Any]:
    """A kept config with what it lacks and today's names."""
    from normjax.config.components import with_todays_names

    whole = complete(with_tuples(kept))
    if "model" in whole:
        whole["model"] = with_todays_names(whole["model"])
    return whole


def _said(config: dict) -> dict[str, Any]:
    """What a kept config says of the run, so that two of the same run are equal."""
    from normjax.config.components import written_out

    whole = _whole(config)
    fields = {**fields_of(whole["task"]), **MODEL}
    for kind in ("model", "optim"):
        whole[kind] = written_out(kind, whole.get(kind, {}))
    for name, field in fields.items():
        *sections, last = name.split(".")
        node: Any = whole
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if field.resume and isinstance(node, dict):
            node.pop(last, None)
    return whole


def _extends(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run is to be longer than it was, see `train.extend`."""
    longer = now["total_steps"] > then["total_steps"]
    return longer and now["fractions_of"] == first_total(then)


def differences(old: Any, new: Any, path: str = "config") -> list[str]:
    """A line for each field that `old` ("there") and `new` ("here") do not share."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        missing = "absent"
        return [
            line
            for key in keys
            for line in differences(
                old.get(key, missing), new.get(key, missing), f"{path}.{key}"
            )
        ]
    return [] if old == new else [f"{path} is {old} there and {new} here"]
