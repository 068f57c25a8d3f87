"""Orbax's manager of checkpoints, with what damage and failures need."""

import datetime
import json
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp


class Manager(ocp.CheckpointManager):
    """One that does not fail over scores that cannot be read.

    Attributes:
      failure: why a write of this process in the background has failed, known at once:
        orbax raises it when the other processes have written as well.
    """

    failure: Exception | None = None

    def check_for_errors(self) -> None:
        super().check_for_errors()
        if self.failure:
            raise self.failure

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise

    def metrics(self, step: int) -> Any:
        try:
            return super().metrics(step)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None


class _Step(ocp.path.step.Metadata):
    """One that does not fail over a damaged time, which nothing here needs."""

    @property
    def commit_timestamp(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)


_STANDARD_NAMES: Any = type(ocp.path.step.standard_name_format())


class Names(_STANDARD_NAMES):
    """Orbax's usual names of folders."""

    def find_all(self, base_path: Any) -> Iterator[_Step]:
        return (_Step(found.step, found.path) for found in super().find_all(base_path))
