"""The registry of models, and what those with stages share."""

from typing import Any

from normjax.core.errors import UserError
from normjax.core.registry import Registry

MODELS = Registry("model")


def in_stages(value: Any, stages: int) -> tuple[Any, ...]:
    """One value per stage: those of a list or tuple, or the same for all.

    Raises:
      UserError: a list of another length.
    """
    if not isinstance(value, list | tuple):
        return (value,) * stages
    if len(value) != stages:
        raise UserError(f"{len(value)} values for {stages} stages: {value}")
    return tuple(value)
