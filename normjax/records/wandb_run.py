"""Weights & Biases: gets the scalars of a run beside its own files, if asked to."""

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normjax.core.errors import UserError, one_line
from normjax.core.files import exists
from normjax.core.paths import is_local, workdir_path
from normjax.records.json_files import read_json, write_json

WANDB_FILE = "wandb.json"


def check_wandb(project: str) -> None:
    """Check that the package is there, if it is to be used.

    Args:
      project: of `config.wandb`; empty: it is not.

    Raises:
      UserError: it is not installed.
    """
    if project:
        _package(project)


class WandbRun:
    """The run of a workdir in a project; a run that goes on is the same run there.

    Whether it is sent, kept (WANDB_MODE=offline) or where else it goes is what the
    package is told by its own settings.

    Args:
      config: of the run, as plain values.

    Raises:
      UserError: the package is not installed, or does not begin.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        package, path = _package(project), workdir_path(workdir) / WANDB_FILE
        kept = read_json(path) if exists(path) else {}
        if kept.get("project") != project:
            kept = {"project": project, "id": secrets.token_hex(4)}
            write_json(path, kept)
        where = {"dir": str(workdir)} if is_local(workdir) else {}
        named = {**kept, "name": Path(str(workdir)).name, **where}
        try:
            self._run = package.init(**named, resume="allow", config=dict(config))
            # Steps that a run takes again come twice; its own count must only grow.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of the network, the settings, the account
            raise UserError(f"config.wandb={project!r}: {_line(error)}") from error

    def add(self, record: Mapping[str, Any]) -> None:
        """Pass the scalars of `record` on, with its "step"."""
        self._run.log(dict(record))

    def close(self) -> None:
        """End the run there, until it goes on."""
        self._run.finish()


def _package(project: str) -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"config.wandb={project!r} needs wandb ({error}): pip install "
            "'normjax[wandb]'"
        ) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else one_line(text)
