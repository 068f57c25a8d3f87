"""Files of JSON in a workdir: whole or not there at all."""

import json
from pathlib import Path
from typing import Any

from normjax.core.errors import UserError


def write_json(path: Path, value: dict) -> None:
    """Write a file of the workdir, complete or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(_text(value))
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


def with_tuples(value: Any) -> Any:
    """JSON knows lists only, configs tuples only."""
    if isinstance(value, dict):
        return {k: with_tuples(v) for k, v in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error.args[0] if error.args else error).split())
