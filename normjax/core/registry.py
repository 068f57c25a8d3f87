"""Registries: a variant is a class and a row; models and configs know only its key."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from normjax.core.arguments import (
    check_arguments,
    check_foreign,
    defaults_of,
    required_names,
)
from normjax.core.errors import UserError, one_line, one_of

NEEDS = frozenset(
    {"mask", "axis_name", "batch_stats", "overwrite_with_gradient", "rng", "condition"}
)
"""What a variant uses beyond its input: a mask of valid positions, a mesh axis to
reduce over, running batch statistics, state written in the backward pass
(`_overwrite_with_gradient`), a random key, a conditioning vector."""

ACCEPTS = frozenset({"seq", "grid", "causal", "decode", "memory"})
"""Input layouts and uses: `seq` [B, L, D], `grid` [B, H, W, C], `causal` (no position
sees a later one), `decode` (one position at a time), `memory` (keys and values of other
tokens)."""

LAYOUTS = ACCEPTS - {"memory"}
OWN_STATE = frozenset({"batch_stats", "overwrite_with_gradient"})

Spec = str | Mapping[str, Any] | Callable[..., Any]
"""How a config names a component: a key, a dict with `name` and keyword arguments, or
a ready factory."""


class Part(NamedTuple):
    """A field of a component that takes another component, as `parts` of its class.

    Attributes:
      registry: of those components.
      passes: tags that the whole has only where the part has them.
      needs, refuses: tags that the part must have, and must not have.
      given: arguments that the whole gives the part.
    """

    registry: "Registry"
    passes: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a registry.

    A class may have `parts`, a mapping from its fields to `Part`, and a static method
    `tags_with(tags, arguments)`, which says what its tags are with these arguments.

    Attributes:
      name: the key that configs use.  make: class or function that builds the variant.
      tags: subset of `NEEDS | ACCEPTS`, with default arguments and parts.
      limits: what takes a tag away that `make` was registered with, by tag.
    """

    name: str
    make: Callable[..., Any]
    tags: frozenset[str]
    limits: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def with_arguments(self, arguments: Mapping[str, Any]) -> "Entry":
        """The row with the tags that it has with these arguments.

        What a part needs the whole needs; what the whole accepts its parts must
        (`Part.passes`). A part of no registry is taken on trust.
        """
        arguments = {**defaults_of(self.make), **arguments}
        adjust = getattr(self.make, "tags_with", lambda tags, _: tags)
        tags = adjust(self.tags, arguments)
        limits = dict.fromkeys(self.tags - tags, "these arguments")
        for name, part in parts_of(self.make).items():
            spec = arguments.get(name)
            inner = None if spec is None else part.registry.entry_of(spec)
            if inner is not None:
                lost = tags & (part.passes - inner.tags)
                limits |= dict.fromkeys(lost, f"{name} {inner.name!r}")
                tags = tags - lost | (inner.tags & NEEDS)
        return dataclasses.replace(self, tags=tags, limits=limits)


def parts_of(make: Callable[..., Any]) -> Mapping[str, Part]:
    """The fields of a component that take components, those of its bases too."""
    bases = reversed(getattr(make, "__mro__", ()))
    declared = [vars(base).get("parts", {}) for base in bases]
    return {name: part for parts in declared for name, part in parts.items()}


class Registry:
    """A named table of variants of one kind ("norm", "mixer", "model", ...).

    Attributes:
      kind: what they are.
      home: the package that registers them, imported when one is asked for; None where
        whoever holds the registry has imported it.
    """

    def __init__(self, kind: str, home: str | None = None):
        self.kind = kind
        self.home = home
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

    @property
    def _known(self) -> dict[str, Entry]:
        if self.home is not None:
            importlib.import_module(self.home)
        return self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._known.values())

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Entry:
        if name not in self._known:
            raise UserError(one_of(self.kind, name, self._known))
        return self._known[name]

    def factory(self, spec: Spec, **defaults: Any) -> functools.partial:
        """The factory that `spec` names: `functools.partial(class, **arguments)`.

        Components among the arguments become factories as well (see `Part`).

        Args:
          spec: a key, a dict `{"name": key, **arguments}`, or a callable.
          **defaults: arguments used where the spec gives none.

        Raises:
          UserError: unknown name; an argument that the class does not take, or of
            another type; a part that is incomplete or does not fit.
        """
        entry, make, given = self._described(spec)
        target: Any = spec if entry is None else make
        arguments = {**defaults, **given}
        if entry is None:
            where = f"{self.kind} {getattr(make, '__name__', make)}"
            check_foreign(where, make, arguments)
        else:
            where = f"{self.kind} {entry.name!r}"
            for name, part in parts_of(make).items():
                if arguments.get(name) is not None:
                    arguments[name] = _made_part(where, name, part, arguments[name])
            check_arguments(where, make, arguments)
        return functools.partial(target, **arguments)

    def entry_of(self, spec: Spec) -> Entry | None:
        """The row that `spec` names or whose class it builds; None if foreign.

        Its tags are those with the arguments of the spec.
        """
        entry, _, arguments = self._described(spec)
        return None if entry is None else entry.with_arguments(arguments)

    def _described(self, spec: Any) -> tuple[Entry | None, Any, dict[str, Any]]:
        """(row or None, class or function, arguments) of a spec."""
        if isinstance(spec, Mapping):
            arguments = dict(spec)
            if "name" not in arguments:
                got = one_line(arguments)
                raise UserError(f"a {self.kind} needs a 'name', got {got}")
            entry = self[arguments.pop("name")]
            return entry, entry.make, arguments
        if isinstance(spec, str):
            return self[spec], self[spec].make, {}
        if not callable(spec) or _is_instance(spec):
            what = f"a {self.kind} is given by its name, a dict or a factory"
            raise UserError(f"{what}, got {one_line(spec)}")
        make, arguments = unwrapped(spec)
        return next((e for e in self if e.make is make), None), make, arguments


NORMS = Registry("norm", home="normjax.norms")
"""Here and not with the norms, for mixers take some and know no package beside them."""


def unwrapped(factory: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """(class or function, arguments) of a factory, also of one made of another."""
    arguments: dict[str, Any] = {}
    while isinstance(factory, functools.partial) and not factory.args:
        arguments = {**factory.keywords, **arguments}
        factory = factory.func
    return factory, arguments


def _is_instance(spec: Any) -> bool:
    """Whether it is a module, made already."""
    return dataclasses.is_dataclass(spec) and not isinstance(spec, type)


def _made_part(where: str, name: str, part: Part, spec: Any) -> functools.partial:
    """The factory of a part, if it is complete and fits."""
    factory, entry = part.registry.factory(spec), part.registry.entry_of(spec)
    if entry is None:
        return factory
    what = f"{where}: {name} {entry.name!r}"
    for missing in required_names(entry.make):
        if missing not in part.given and missing not in factory.keywords:
            raise UserError(f"{what} needs {missing}")
    for tag in sorted(part.needs - entry.tags):
        raise UserError(f"{what} lacks {tag!r}, which it needs here")
    for tag in sorted(part.refuses & entry.tags):
        raise UserError(f"{what} has {tag!r}, which has no place here")
    return factory


def with_defaults(factory: Callable[..., Any], **arguments: Any) -> functools.partial:
    """`factory` with what it takes of `arguments` and was not given before.

    What a model knows are defaults of its components: a mixer without heads leaves
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
            limits = dict.fromkeys(
                entry.limits[t] for t in missing if t in entry.limits
            )
            what = " with ".join((f"{kind} {entry.name!r}", *limits))
            return (
                f"{what} does not accept {' + '.join(missing)} input "
                f"(it accepts: {accepted})"
            )
    return None
