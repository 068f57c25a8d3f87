"""Overrides of a config on a command line: `--config.optim.lr=1e-3`."""

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from normjax.core.errors import UserError, one_of
from normjax.core.schedules import norm_schedule

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_NAME = re.compile(r"[^.\[\]]+(\[(\d+|\*)\])*(\.[^.\[\]]+(\[(\d+|\*)\])*)*")
_ALL = "[*]"
_OPTIM = "config.optim"
_OF_COMPONENTS = ("config.model", _OPTIM)
"""Sections whose further fields are arguments of what they name."""
_PARSERS = {
    bool: flags.BooleanParser().parse,
    int: flags.IntegerParser().parse,
    float: flags.FloatParser().parse,
    str: str,
}


class Override(NamedTuple):
    """One of them.

    Attributes:
      field: its dotted name, behind "config.".
      text: its value; None: there is none, which switches a field on, or
      off: which switches it off.
    """

    field: str
    text: str | None
    off: bool = False


def split(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Other arguments, and overrides; all behind "--" is other arguments."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    matches = [(a, _OVERRIDE.fullmatch(a)) for a in arguments[:end]]
    others = [a for a, match in matches if not match]
    found = [m for _, m in matches if m]
    overrides = [Override(m[2], m[3], bool(m[1])) for m in found]
    return [*others, *arguments[end:]], overrides


def override(config: ConfigDict, overrides: Iterable[Override]) -> ConfigDict:
    """Set fields of `config`, in order.

    A value has the type of what it replaces. In `config.model` every argument of the
    named components can be set, whether or not the config says it already; a component
    itself is given by its name. `mixer[*].core` is that of every mixer that has one, of
    all stages and layers.

    Raises:
      UserError: no such field, or not a value of it.
    """
    with config.unlocked(), config.ignore_type():
        for one in overrides:
            if not _NAME.fullmatch(one.field):
                raise UserError(f"config.{one.field} is no name of a field")
            marks = re.findall(r"\[\d+\]|\[\*\]|[^.\[\]]+", one.field)
            steps = [
                int(m[1:-1]) if m.startswith("[") and m != _ALL else m for m in marks
            ]
            _set(config, steps, one, "config", "")
    return config


def _set(node: Any, steps: Sequence[Any], one: Override, where: str, kind: str) -> Any:
    """`node` with the value that `steps` lead to; a ConfigDict changes itself.

    Args:
      where: name of `node`.  kind: the field that it stands in, within a model.
    """
    step, *rest = steps
    if isinstance(step, int):
        return _set_entry(node, step, rest, one, where, kind)
    if step == _ALL:
        return _set_all(node, rest, one, where, kind)
    if isinstance(node, list | tuple) and kind:
        shown = ", ".join(f"{where}[{i}] is {v}" for i, v in enumerate(node))
        raise UserError(f"{where} is one of each stage ({shown}): say which, or [*]")
    node = _named(node, step, where, kind)
    value, kinds, registry = _present(node, step, where, kind)
    place = f"{where}.{step}"
    below = step if registry is not None or place in _OF_COMPONENTS else ""
    if rest:
        new = _set(value, rest, one, place, below)
    elif registry is not None:
        new = _component(registry, one, place, below, optional=type(None) in kinds)
        if isinstance(value, str) and isinstance(new, dict) and set(new) == {"name"}:
            new = new["name"]
    elif isinstance(value, ConfigDict | Mapping):
        names = ", ".join(f"{place}.{name}" for name in value)
        raise UserError(f"{place} has fields, which are set one by one: {names}")
    else:
        new = _value(one, kinds, place)
    if not isinstance(node, ConfigDict):
        node = dict(node)
    for a, b in (("_steps", "_fraction"), ("_fraction", "_steps")):
        twin = step.removesuffix(a) + b  # the same number, said otherwise
        if kind and step.endswith(a) and twin in node:
            del node[twin]
    node[step] = new
    return node


def _named(node: Any, step: str, where: str, kind: str) -> Any:
    """`node`, a component by its key as the dict that it stands for.

    Raises:
      UserError: a value, which has no fields.
    """
    if kind and isinstance(node, str):
        return {"name": node}
    if not isinstance(node, ConfigDict | Mapping):
        raise UserError(f"{where} is a value and has no field {step!r}")
    return node


def _set_entry(node, index: int, rest, one: Override, where: str, kind: str) -> tuple:
    if not isinstance(node, list | tuple):
        raise UserError(f"{where} is no list: [{index}]")
    if index >= len(node):
        raise UserError(f"{where} has {len(node)} entries: [{index}]")
    place, old = f"{where}[{index}]", node[index]
    if rest:
        new = _set(old, rest, one, place, kind)
    elif kind and isinstance(old, str | Mapping):
        from normjax.config.components import REGISTRIES

        new = _component(REGISTRIES[kind], one, place, kind, optional=False)
    else:
        new = _value(one, (type(old),), place)
    return (*node[:index], new, *node[index + 1 :])


def _set_all(node, rest, one: Override, where: str, kind: str) -> Any:
    """`node` with a field set in every component below that has it.

    Raises:
      UserError: none has it.
    """
    if not (kind and rest and isinstance(rest[0], str)):
        raise UserError(
            f"{where}{_ALL} stands for components: say which of their fields"
        )
    having: list[str] = []
    lacking: list[UserError] = []

    def changed(node: Any, where: str) -> Any:
        if isinstance(node, list | tuple):
            return tuple(changed(e, f"{where}[{i}]") for i, e in enumerate(node))
        try:
            _present(_named(node, rest[0], where, kind), rest[0], where, kind)
        except UserError as error:
            lacking.append(error)
            return node
        having.append(where)
        return _set(node, rest, one, where, kind)

    new = changed(node, where)
    if not having:
        raise lacking[0]
    return new


def _present(node: Any, name: str, where: str, kind: str) -> tuple[Any, Any, Any]:
    """The value that a field has now, the types it may have, and its registry.

    Raises:
      UserError: there is no such field.
    """
    declared = where == _OPTIM and name in node
    if declared or not kind:  # which needs none of what imports jax
        if name not in node:
            raise UserError(one_of(f"field of {where}:", name, node))
        value = node[name]
        known = node.get_type(name) if isinstance(node, ConfigDict) else type(value)
        return value, (known,), None
    from normjax.config.components import ELSEWHERE, renamed, settable

    arguments = settable(kind, node)
    if name in arguments:
        default, kinds, registry = arguments[name]
        if default is None:
            kinds = (type(None), *kinds)
        return node.get(name, default), kinds, registry
    if name in node:
        return node[name], (type(node[name]),), None
    if name in ELSEWHERE:
        raise UserError(f"{where}.{name} cannot be set here: {ELSEWHERE[name]}")
    now = renamed(kind, node).get(name)
    if now is not None:
        raise UserError(f"{where}.{name} is {where}.{now} now")
    raise UserError(one_of(f"field of {where}:", name, {*node, *arguments}))


def _component(
    registry: Any, one: Override, where: str, kind: str, *, optional: bool
) -> Any:
    """A component by its name, with its schedule if it has one; or written as Python.

    Raises:
      UserError: no such component.
    """
    text = one.text or ""
    if text in registry:
        schedule = norm_schedule(text) if where == "config.model.norm" else {}
        return {"name": text, **schedule}
    if optional and text in ("None", "none"):
        return None
    given = _literal(text) if text[:1] in ("{", "(", "[") else None
    parts = list(_entries(given))
    names = [p.get("name") if isinstance(p, dict) else p for p in parts]
    if given is None or not all(isinstance(n, str) for n in names):
        names = [text]
    for name in names:
        if name not in registry:
            raise UserError(
                f"{where}: {one_of(kind, name, [e.name for e in registry])}"
            )
    return given


def _entries(given: Any) -> Iterator[Any]:
    """Those of a pattern, whose stages may be patterns of layers."""
    if isinstance(given, list | tuple):
        for entry in given:
            yield from _entries(entry)
    else:
        yield given


def _value(one: Override, kinds: Sequence[type], where: str) -> Any:
    """The text as a value of the first type that can read it.

    Raises:
      UserError: none can.
    """
    if one.off and one.text is None and bool in kinds:
        return False
    if one.off or (one.text is None and bool not in kinds):
        raise UserError(f"{where} takes a value: --{where}=...")
    text = "true" if one.text is None else one.text
    if set(kinds) <= {type(None)}:  # which says nothing of its type
        given = _literal(text)
        return text if given is None and text != "None" else given
    if type(None) in kinds and text in ("None", "none"):
        return None
    for kind, parse in _PARSERS.items():
        if kind in kinds and kind is not str:
            with contextlib.suppress(TypeError, ValueError):
                return parse(text)
    if {tuple, list} & set(kinds):
        given = _literal(text)
        if isinstance(given, list | tuple):
            return tuple(given)
    if str in kinds:
        return text
    names = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
    raise UserError(f"{where} takes a value of type {names}: {text!r}")


def _literal(text: str) -> Any:
    """What Python reads in `text`; None where it reads nothing."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
