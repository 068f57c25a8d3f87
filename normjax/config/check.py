"""Values of a config, checked before anything is made of them."""

import dataclasses
import functools
import numbers
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from normjax.config.declare import Allowed, sections
from normjax.config.fields import fields_of
from normjax.config.sections import MODEL, OPEN, RUNS, Init
from normjax.core.errors import UserError, one_line, one_of
from normjax.core.ranges import COUNT, OF_ARGUMENTS, Range

LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
"""Of float32."""


def check_config(config: Any) -> None:
    """Check what `sections` says of values, and every number.

    All are finite in float32, integers have 64 bits.

    Raises:
      UserError: the first that is not allowed, and what is.
    """
    fields = fields_of(config.task)
    for name, value in _leaves(config.to_dict()):
        if _is_number(value):
            _check_size(name, value)
        if name in fields:
            _check(name, value, fields[name].allowed)
        elif _is_number(value) and name.startswith("model."):
            _check(name, value, _within_model(name, value))
    _check_init(config.to_dict().get("init", {}))


def _check_init(init: Mapping[str, Any]) -> None:
    """Nothing is said of weights that a run does not begin with."""
    usual = dataclasses.asdict(Init())
    for name, value in init.items():
        if not init["path"] and value != usual.get(name):
            raise UserError(
                f"config.init.{name} has no effect without config.init.path"
            )


def check_names(config: Any) -> None:
    """Check that the sections of a config have the fields that its task declares.

    Of a task that is not ours, and of `config.model`, others know the fields.

    Raises:
      UserError: one that is declared nowhere: it would be read by nobody.
    """
    if config.get("task") not in RUNS:
        return
    for prefix, section in sections(RUNS[config.task]):
        parts = filter(None, prefix.split("."))
        node = functools.reduce(lambda found, part: found.get(part, {}), parts, config)
        known = [field.name for field in dataclasses.fields(section)]
        for name in node if section not in OPEN else ():
            if name not in known:
                where = f"config.{prefix}".rstrip(".")
                raise UserError(one_of(f"field of {where}:", name, known))


def require(config: Any, name: str) -> Any:
    """The value of a field, if it is allowed.

    Raises:
      UserError: it is not.
    """
    value = functools.reduce(operator.getitem, name.split("."), config)
    _check(name, value, fields_of(config.task)[name].allowed)
    return value


def _check(name: str, value: Any, allowed: Allowed) -> None:
    if isinstance(allowed, Range):
        if not (_is_number(value) and allowed.holds(value)):
            raise UserError(f"config.{name} must {allowed}, got {one_line(value)}")
    elif isinstance(allowed, tuple) and value not in allowed:
        raise UserError(one_of(f"config.{name}", value, allowed))


def _check_size(name: str, value: float) -> None:
    if isinstance(value, int):
        if abs(value) > LARGEST_INT:
            raise UserError(f"config.{name} is beyond 64 bits: {value}")
    elif not abs(value) <= LARGEST_FLOAT:
        raise UserError(f"config.{name} must be finite in float32, got {value}")


def _within_model(name: str, value: float) -> Allowed:
    if name in MODEL:
        return MODEL[name].allowed
    last = name.rpartition(".")[2]
    return OF_ARGUMENTS.get(last, COUNT if isinstance(value, int) else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a tree of dicts, lists and tuples, with its path."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part, path)
    else:
        yield path, value
