"""Registries: a variant is a class and a row; models and configs know only its key."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from normjax.core.errors import UserError, one_of

NEEDS = frozenset({"mask", "axis_name", "batch_stats", "owg", "rng", "condition"})
"""What a variant uses beyond its input: a mask of valid positions, a mesh axis to
reduce over, running batch statistics, state written in the backward pass
(`_overwrite_with_gradient`), a random key, a conditioning vector."""

ACCEPTS = frozenset({"seq", "grid", "causal", "decode", "memory"})
"""Input layouts and uses: `seq` [B, L, D], `grid` [B, H, W, C], `causal` (no position
sees a later one), `decode` (one position at a time), `memory` (keys and values of other
tokens)."""

Spec = str | Mapping[str, Any] | Callable[..., Any]
"""How a config names a component: a key, a dict with `name` and keyword arguments, or
a ready factory."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a registry.

    Attributes:
      name: the key that configs use.  make: class or function that builds the variant.
      tags: subset of `NEEDS | ACCEPTS`.
    """

    name: str
    make: Callable[..., Any]
    tags: frozenset[str]


class Registry:
    """A named table of variants of one kind ("norm", "mixer", "model", ...)."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, *tags: str) -> Callable[[Any], Any]:
        """Decorator that adds a class or function under `name`.

        Raises:
          ValueError: a tag outside `NEEDS | ACCEPTS`, or a name taken twice.
        """
        unknown = set(tags) - NEEDS - ACCEPTS
        if unknown:
            raise ValueError(one_of("tag", sorted(unknown)[0], NEEDS | ACCEPTS))
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")

        def add(make):
            self._entries[name] = Entry(name, make, frozenset(tags))
            return make

        return add

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise UserError(one_of(self.kind, name, self._entries))
        return self._entries[name]

    def factory(self, spec: Spec, **defaults: Any) -> functools.partial:
        """The factory that `spec` names: `functools.partial(class, **arguments)`.

        Args:
          spec: a key, a dict `{"name": key, **arguments}`, or a callable.
          **defaults: arguments used where the spec gives none.

        Raises:
          UserError: unknown name, or an argument that the class does not take.
        """
        if callable(spec):
            return functools.partial(spec, **defaults)
        arguments = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in arguments:
            raise UserError(f"a {self.kind} needs a 'name', got {dict(arguments)}")
        entry = self[arguments.pop("name")]
        allowed = field_names(entry.make)
        for argument in arguments:
            if argument not in allowed:
                where = f"argument of {self.kind} {entry.name!r}:"
                raise UserError(one_of(where, argument, allowed))
        return functools.partial(entry.make, **{**defaults, **arguments})

    def entry_of(self, spec: Spec) -> Entry | None:
        """The row that `spec` names or whose class it builds; None if foreign."""
        if isinstance(spec, str):
            return self[spec]
        if isinstance(spec, Mapping):
            return self[spec["name"]]
        make = spec
        while isinstance(make, functools.partial):
            make = make.func
        return next((entry for entry in self if entry.make is make), None)


def field_names(make: Callable[..., Any]) -> list[str]:
    """Keyword arguments that a Flax module class or a plain function takes."""
    if dataclasses.is_dataclass(make):
        hidden = {"name", "parent"}
        return [f.name for f in dataclasses.fields(make) if f.name not in hidden]
    code = make.__code__
    return list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def offer(factory: Callable[..., Any], **arguments: Any) -> functools.partial:
    """`factory` with what it takes of `arguments` and was not given before.

    A model offers its components what it knows: a mixer without heads leaves
    `num_heads`, one whose spec has its own keeps that.
    """
    parameters = inspect.signature(factory).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    taken = {
        name: value
        for name, value in arguments.items()
        if name not in given and (anything or name in parameters)
    }
    return functools.partial(factory, **taken)


def required_names(make: Callable[..., Any]) -> list[str]:
    """Those of a Flax module class's arguments that have no default."""
    if not dataclasses.is_dataclass(make):
        return []
    empty = dataclasses.MISSING
    fields = (f for f in dataclasses.fields(make) if f.default is f.default_factory)
    return [f.name for f in fields if f.init and f.default is empty]


def compatible(layouts: Iterable[str], entries: Iterable[tuple[str, Entry | None]]):
    """Why components cannot meet a model's input, or None when they can.

    Args:
      layouts: what the model feeds: `{"grid"}`, `{"seq"}`, `{"seq", "causal"}`, ...
      entries: pairs (kind, row); a foreign component (None) is taken on trust.
    """
    for kind, entry in entries:
        if entry is None:
            continue
        missing = sorted(set(layouts) - entry.tags)
        if missing:
            accepted = ", ".join(sorted(entry.tags & ACCEPTS)) or "nothing"
            return (
                f"{kind} {entry.name!r} does not accept {' + '.join(missing)} input "
                f"(it accepts: {accepted})"
            )
    return None
