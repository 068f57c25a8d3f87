"""docs/config.md, made from what `sections` declares."""

import inspect
import re
from collections.abc import Iterator

from normjax.config.declare import Field, fields, sections
from normjax.config.sections import RUNS, Run
from normjax.core.ranges import Range

_HEAD = """\
# Fields of a config

`python -m normjax.config > docs/config.md` writes this page from
`normjax/config/sections.py`, where every field is declared. A field is set in a recipe
(`config.optim.lr = 1e-3`) or on the command line (`--config.optim.lr=1e-3`). Recipes
set many of them; here are the values that they begin with.

*resume*: whether a run may go on with another value. *read*: whether eval, export and
other commands that read a run may set it for themselves. "Runs without it" says what
those did that were begun before the field was there, where that is not the default.
"""

_COLUMNS = ("field", "default", "allowed", "resume", "read", "meaning")


def reference() -> str:
    """The page: a table for every section, and for what a task adds to it."""
    return "\n".join([_HEAD, *_tables()])


def _tables() -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for task, root in {"": Run, **RUNS}.items():
        for prefix, section in sections(root):
            own = fields(section)
            new = {n: f for n, f in own.items() if (prefix, n) not in seen}
            seen |= {(prefix, name) for name in new}
            if new or not (own or task):
                path = f"config.{prefix}".rstrip(".")
                title = f"`{path}`, {task}" if task else f"`{path}`"
                yield f"## {title}\n\n{_words(section)}\n"
                if new:
                    yield _table(new)


def _table(rows: dict[str, Field]) -> str:
    rule = ("---",) * len(_COLUMNS)
    lines = (_COLUMNS, rule, *(_row(name, field) for name, field in rows.items()))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(name: str, field: Field) -> tuple[str, ...]:
    allowed = field.allowed
    if isinstance(allowed, Range):
        allowed = str(allowed).partition(" ")[2]  # be at least 1; lie in [0, 1]
    elif isinstance(allowed, tuple):
        allowed = ", ".join(allowed)
    before = f"; runs without it: `{field.absent!r}`"
    return (
        f"`{name}`",
        f"`{field.default!r}`",
        _escaped(str(allowed)),
        "yes" if field.resume else "no",
        "yes" if field.read else "no",
        _escaped(field.meaning) + (before if field.absent != field.default else ""),
    )


def _words(section: type) -> str:
    """What it says of itself, with links to the pages beside this one."""
    text = inspect.cleandoc(section.__doc__ or "")
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
