"""Files of JSON in a workdir: whole or not there at all."""

import json
from pathlib import Path
from typing import Any

from normjax.core.errors import UserError
from normjax.core.files import read, reason, write
from normjax.core.paths import is_local


def write_json(path: Path, value: Any) -> None:
    """Write a file of the workdir, complete or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        if is_local(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write(path, _text(value).encode())
    except OSError as error:
        raise UserError(f"workdir {path.parent}: {reason(error)}") from error


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    try:
        return json.loads(read(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def with_tuples(value: Any) -> Any:
    """JSON knows lists only, configs tuples only."""
    if isinstance(value, dict):
        return {k: with_tuples(v) for k, v in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
