"""How a field of a run's config is declared. No jax, flax or numpy here.

A section is a frozen dataclass, a field of it made by `run`, `start` or `machine`:

    lr: float = run(1e-3, "the largest learning rate", COUNT)

which says once its default, its meaning, what is allowed, whether a run may go on with
another value, whether commands that read a run may set it, and what it meant before it
was there.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from normjax.core.ranges import Range

Allowed = Range | tuple[str, ...] | str
"""Numbers of a range; one of some words; or a sentence of what whoever reads the field
checks: the keys of a registry, say, which nothing here may import."""


class Field(NamedTuple):
    """A field as its section declares it.

    Attributes:
      default: in a new config.
      meaning: in one line.
      allowed: of its values; "": those of its type.
      absent: what a run did whose config has no such field. Not always what new runs do
        by default.
      resume: whether a run may go on with another value, as it changes nothing in what
        is learned.
      read: whether commands that read a run (eval, export, ...) may set it for
        themselves.
    """

    default: Any
    meaning: str
    allowed: Allowed = ""
    absent: Any = None
    resume: bool = False
    read: bool = False


_SAME: Any = object()


def run(
    default: Any,
    meaning: str,
    allowed: Allowed = "",
    *,
    absent: Any = _SAME,
    resume: bool = False,
    read: bool = False,
) -> Any:
    """A field of what is learned, which stays as it is for the whole of a run.

    Args:
      absent: default: `default`.
    """
    absent = default if absent is _SAME else absent
    field = Field(default, meaning, allowed, absent, resume, read)
    return dataclasses.field(default=default, metadata={"field": field})


def start(default: Any, meaning: str, allowed: Allowed = "", **more: Any) -> Any:
    """A field of one start of a run: how often it looks, saves and says something."""
    return run(default, meaning, allowed, resume=True, **more)


def machine(default: Any, meaning: str, allowed: Allowed = "", **more: Any) -> Any:
    """A field of the machine: where data lie, what computes."""
    return run(default, meaning, allowed, resume=True, read=True, **more)


def sections(section: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """`section` and those within it, by dotted names; its own is `prefix`."""
    yield prefix, section
    for field in dataclasses.fields(section):
        if "field" not in field.metadata:
            name = f"{prefix}.{field.name}" if prefix else field.name
            yield from sections(type(field.default), name)


def fields(section: type) -> dict[str, Field]:
    """Those that a section declares itself, by name."""
    declared = dataclasses.fields(section)
    return {f.name: f.metadata["field"] for f in declared if "field" in f.metadata}
