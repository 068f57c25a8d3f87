"""What arguments a component takes: their names, and the types of the plain ones."""

import collections.abc
import dataclasses
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  # makes numpy know "bfloat16"
import numpy as np

from normjax.core.errors import UserError, one_line, one_of
from normjax.core.ranges import numbers_in, ranges_of

_DTYPE = "a type of numbers"
_PLAIN = {str: "a string", bool: "True or False", int: "an integer", float: "a number"}


def field_names(make: Callable[..., Any]) -> list[str]:
    """Keyword arguments that a Flax module class or a plain function takes."""
    if dataclasses.is_dataclass(make):
        hidden = {"name", "parent"}
        fields = (f for f in dataclasses.fields(make) if f.init)
        return [f.name for f in fields if f.name not in hidden]
    code = make.__code__  # positional-only arguments are its caller's
    end = code.co_argcount + code.co_kwonlyargcount
    return list(code.co_varnames[code.co_posonlyargcount : end])


def required_names(make: Callable[..., Any]) -> list[str]:
    """Those of a Flax module class's arguments that have no default."""
    if not dataclasses.is_dataclass(make):
        return []
    empty = dataclasses.MISSING
    fields = (f for f in dataclasses.fields(make) if f.default is f.default_factory)
    return [f.name for f in fields if f.init and f.default is empty]


def defaults_of(make: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of the fields of a Flax module class; none of a plain function."""
    if not dataclasses.is_dataclass(make):
        return {}
    fields = dataclasses.fields(make)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def check_arguments(
    what: str, make: Callable[..., Any], given: Mapping[str, Any]
) -> None:
    """Raise UserError unless `make` takes all of the arguments, and of such values.

    Types are those that a class or function declares, as far as they are numbers,
    strings, truth values, functions or tuples of them; numbers are finite and lie in
    the ranges of `core.ranges`. A class may say in `renamed` how arguments that it had
    under other names are called now.

    Args:
      what: the component, "norm 'rms_norm'".
    """
    allowed = field_names(make)
    hints, ranges = _declared(make), ranges_of(make)
    for name, value in given.items():
        if name not in allowed:
            raise UserError(unknown_argument(what, make, name, allowed))
        hint = hints.get(name, Any)
        wanted = _DTYPE if name.endswith("dtype") else _described(hint)
        fits = _is_dtype(value, hint) if wanted is _DTYPE else _fits(value, hint)
        if not fits:
            raise UserError(f"{what}: {name} takes {wanted}, got {one_line(value)}")
        for _, number in numbers_in(value) if name in ranges else ():
            if not ranges[name].holds(number):
                allowed = ranges[name]
                raise UserError(f"{what}: {name} must {allowed}, got {one_line(value)}")


def unknown_argument(
    what: str, make: Callable[..., Any], name: str, allowed: Iterable[str]
) -> str:
    """The line that refuses an argument; what it is called now, if it was renamed."""
    now = getattr(make, "renamed", {}).get(name)
    if now is not None:
        return f"unknown argument of {what}: {name!r}; it is {now!r} now"
    return one_of(f"argument of {what}:", name, allowed)


def check_foreign(what: str, make: Callable[..., Any], given: Mapping[str, Any]):
    """The same of names alone, for what no registry knows."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # some built-in ones have none
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            raise UserError(one_of(f"argument of {what}:", name, parameters))


def _declared(make: Callable[..., Any]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(make):
        return inspect.get_annotations(make)
    return {field.name: field.type for field in dataclasses.fields(make)}


def _is_dtype(value: Any, hint: Any) -> bool:
    """Whether it is one, its name, or None where that leaves it open."""
    if value is None:
        return hint is Any or type(None) in _alternatives(hint)
    try:
        made = np.dtype(value)
    except (TypeError, ValueError):
        return False
    return made.kind in "iufcV" and made.fields is None and made.itemsize > 0


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(a for h in typing.get_args(hint) for a in _alternatives(h))
    return (hint,)


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_a(value, kind) for kind in _alternatives(hint))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether the value is of that type; of one that is not plain, anything is."""
    origin = typing.get_origin(kind)
    if kind in (None, type(None)):
        return value is None
    if kind in _PLAIN:
        return _is_plain(value, kind)
    if origin is tuple:
        inner, *rest = typing.get_args(kind)
        if not isinstance(value, tuple | list):
            return False
        if rest in ([], [...]):
            return all(_fits(v, inner) for v in value)
        kinds = (inner, *rest)
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is collections.abc.Callable or getattr(kind, "_is_protocol", False):
        return callable(value)
    return True


def _is_plain(value: Any, kind: type) -> bool:
    boolean = isinstance(value, bool | np.bool_)
    if kind is bool:
        return boolean
    if kind is str:
        return isinstance(value, str)
    if isinstance(value, numbers.Number):
        wanted = numbers.Integral if kind is int else numbers.Real
        return not boolean and isinstance(value, wanted) and math.isfinite(value)
    # A scalar array, traced or not.
    kinds = "iu" if kind is int else "iuf"
    given = getattr(getattr(value, "dtype", None), "kind", "")
    return getattr(value, "ndim", None) == 0 and (given == "V" or given in kinds)


def _described(hint: Any) -> str:
    texts = []
    for kind in _alternatives(hint):
        if kind in (None, type(None)):
            texts.append("None")
        elif kind in _PLAIN:
            texts.append(_PLAIN[kind])
        elif typing.get_origin(kind) is tuple:
            inner = " and ".join(_described(k) for k in typing.get_args(kind)[:1])
            texts.append(f"a tuple, each {inner}")
        else:
            texts.append("a function")
    return " or ".join(dict.fromkeys(texts))
