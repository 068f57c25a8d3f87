"""Every public name of normjax: what `__all__` of its packages and registries hold."""

import ast
import dataclasses
import functools
import importlib
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import normjax
from normjax.core.registry import Entry, Registry
from tests.api.docstrings import Docstring, docstring_of

ROOT = Path(normjax.__file__).parent.parent
HIDDEN = {"name", "parent"}
"""Fields of every Flax module."""


class Definition(NamedTuple):
    """Where something is defined: the module, and the statement there, or all of it."""

    module: str
    node: ast.AST


class Argument(NamedTuple):
    """A parameter or a field, as the source has it.

    Attributes:
      text: "name: type = default".
      kind: "positional" alone, "keyword" alone, "*", "**", or "" for any.
    """

    name: str
    text: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
      home: the module that has it in its `__all__`, or whose registry holds it.
      name: there.
      value: what it is.
      defined: where.
      rows: (registry, row) of those that build it.
      exported: whether an `__all__` has it.
    """

    home: str
    name: str
    value: Any
    defined: Definition
    rows: tuple[tuple[str, Entry], ...] = ()
    exported: bool = True

    @property
    def path(self) -> str:
        return f"{self.home}.{self.name}"

    @property
    def page(self) -> str:
        """The package of normjax on whose page it stands."""
        return self.home.split(".")[1]

    @functools.cached_property
    def docstring(self) -> Docstring:
        module, node = self.defined
        if isinstance(node, ast.Assign | ast.AnnAssign):
            body = tree_of(module).body
            return docstring_of(body[body.index(node) + 1 :][:1])
        return docstring_of(node.body)

    @functools.cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """Parameters of a function; fields of a Flax module, dataclass, named tuple."""
        if isinstance(self.defined.node, ast.FunctionDef):
            return tuple(parameters(self.defined))
        if not isinstance(self.defined.node, ast.ClassDef):
            return ()
        declared = {a.name: a for c in classes(self.value) for a in annotated(c)}
        return tuple(declared[name] for name in fields_of(self.value))

    @functools.cached_property
    def methods(self) -> dict[str, Definition]:
        """Those with a docstring, of the class or of what it inherits from normjax."""
        if not isinstance(self.defined.node, ast.ClassDef):
            return {}
        return {
            node.name: Definition(module, node)
            for module, base in classes(self.value)
            for node in base.body
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
        }


@functools.cache
def names() -> tuple[Name, ...]:
    """All of them, each once: those of `__all__`, then those of registries alone."""
    exported = [n for home in homes() for n in _exported(home)]
    registries = [n for n in exported if isinstance(n.value, Registry)]
    rows: dict[Any, list[tuple[str, Entry]]] = {}
    for registry in registries:
        for entry in registry.value:
            rows.setdefault(entry.make, []).append((registry.name, entry))
    found: dict[int, Name] = {}
    for name in sorted(exported, key=_distance):
        held = tuple(rows.get(name.value, ())) if callable(name.value) else ()
        found.setdefault(id(name.value), dataclasses.replace(name, rows=held))
    home = {registry.name: registry.home for registry in registries}
    for make, held in rows.items():
        where = definition(make.__module__, make.__name__)
        alone = Name(home[held[0][0]], make.__name__, make, where, tuple(held), False)
        found.setdefault(id(make), alone)
    order = {name.path: i for i, name in enumerate(exported)}
    return tuple(sorted(found.values(), key=lambda n: order.get(n.path, len(order))))


def _distance(name: Name) -> bool:
    """Names of several packages belong to that which defines them."""
    return not name.defined.module.startswith(name.home)


def _exported(home: str) -> Iterator[Name]:
    module = importlib.import_module(home)
    for name in module.__all__:
        yield Name(home, name, getattr(module, name), definition(home, name))


@functools.cache
def homes() -> tuple[str, ...]:
    """The modules with an `__all__`: packages, and modules that those export."""
    every = pkgutil.walk_packages(normjax.__path__, "normjax.")
    modules = [importlib.import_module(info.name) for info in every if info.ispkg]
    found = [module.__name__ for module in modules if hasattr(module, "__all__")]
    for module in modules:
        values = (getattr(module, name) for name in getattr(module, "__all__", ()))
        inner = [v.__name__ for v in values if isinstance(v, types.ModuleType)]
        found += [name for name in inner if name not in found]
    return tuple(found)


def definition(module: str, name: str) -> Definition:
    """Where what `module` calls `name` is defined."""
    for node in tree_of(module).body:
        match node:
            case ast.ImportFrom(module=str(origin), names=aliases):
                for alias in aliases:
                    if (alias.asname or alias.name) == name:
                        inner = getattr(importlib.import_module(origin), alias.name)
                        if isinstance(inner, types.ModuleType):
                            return Definition(inner.__name__, tree_of(inner.__name__))
                        return definition(origin, alias.name)
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return Definition(module, node)
            case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                return Definition(module, node)
            case ast.AnnAssign(target=ast.Name(id=target)) if target == name:
                return Definition(module, node)
    raise LookupError(f"{module} does not define {name}")


def file_of(module: str) -> Path:
    return Path(str(importlib.import_module(module).__file__))


@functools.cache
def lines_of(module: str) -> list[bytes]:
    return file_of(module).read_bytes().splitlines()


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text())


def classes(value: type) -> list[Definition]:
    """A class and what it inherits from normjax, bases first."""
    ours = [c for c in reversed(value.__mro__) if c.__module__.startswith("normjax.")]
    return [definition(c.__module__, c.__name__) for c in ours]


def fields_of(value: type) -> tuple[str, ...]:
    """Names of what a Flax module, dataclass or named tuple is made of."""
    if dataclasses.is_dataclass(value):
        fields = (f.name for f in dataclasses.fields(value) if f.init)
        return tuple(name for name in fields if name not in HIDDEN)
    return getattr(value, "_fields", ())


def annotated(where: Definition) -> Iterator[Argument]:
    """The fields that a class declares."""
    for node in where.node.body:
        if isinstance(node, ast.AnnAssign):
            yield _argument(where.module, node.target.id, node.annotation, node.value)


def parameters(where: Definition) -> Iterator[Argument]:
    """Those of a function or method, but for `self`."""
    given = where.node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    for argument, default in zip(plain, defaults, strict=True):
        kind = "positional" if argument in given.posonlyargs else ""
        if argument.arg not in ("self", "cls"):
            yield _argument(
                where.module, argument.arg, argument.annotation, default, kind
            )
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    for kind, pairs in (
        ("*", [(given.vararg, None)]),
        ("keyword", keywords),
        ("**", [(given.kwarg, None)]),
    ):
        for argument, default in pairs:
            if argument is not None:
                yield _argument(
                    where.module, argument.arg, argument.annotation, default, kind
                )


def _argument(
    module: str,
    name: str,
    annotation: ast.expr | None = None,
    default: ast.expr | None = None,
    kind: str = "",
) -> Argument:
    text = kind + name if "*" in kind else name
    if annotation is not None:
        text += f": {source(module, annotation)}"
    if default is not None:
        equals = "=" if annotation is None else " = "
        text += f"{equals}{source(module, default)}"
    return Argument(name, text, kind)


def source(module: str, node: ast.expr) -> str:
    """As it is written, in one line."""
    lines = lines_of(module)[node.lineno - 1 : node.end_lineno]
    lines[-1] = lines[-1][: node.end_col_offset]
    lines[0] = lines[0][node.col_offset :]
    return " ".join(b" ".join(lines).decode().split())
