"""Docstrings of the house, taken apart.

A text, then sections: what is needed to call (`Attributes:`, `Args:`), what comes of it
(`Returns:`, `Yields:`, `Raises:`) and an `Example:` for doctest. Items of a section are
`name: text` or `name, name: text`; several stand in one line, two spaces apart.
"""

import ast
import inspect
import re
from collections.abc import Sequence
from typing import NamedTuple

SECTIONS = ("Attributes", "Args", "Returns", "Yields", "Raises", "Example")

_TITLE = re.compile(rf"^({'|'.join(SECTIONS)}):$", re.MULTILINE)
_NAMES = r"\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*"
_ITEM = re.compile(rf"(?:^|  )({_NAMES}):(?= )")


class Docstring(NamedTuple):
    """What it says.

    Attributes:
      text: before the sections.
      sections: by title, dedented.
    """

    text: str
    sections: dict[str, str]

    @property
    def summary(self) -> str:
        """The first paragraph, in one line."""
        return " ".join(self.text.partition("\n\n")[0].split())

    @property
    def arguments(self) -> list[tuple[list[str], str]]:
        """(names, text) of what is listed of attributes and arguments."""
        both = ("Attributes", "Args")
        return [i for title in both for i in items(self.sections.get(title, ""))]

    @property
    def example(self) -> str:
        return self.sections.get("Example", "")


def docstring_of(body: Sequence[ast.stmt]) -> Docstring:
    """That which a body starts with; an empty one where there is none."""
    match body:
        case [ast.Expr(ast.Constant(str(text))), *_]:
            return parse(text)
    return Docstring("", {})


def parse(text: str) -> Docstring:
    head, *rest = _TITLE.split(inspect.cleandoc(text))
    pairs = zip(rest[::2], rest[1::2], strict=True)
    sections = {title: inspect.cleandoc(f"\n{body}") for title, body in pairs}
    return Docstring(head.strip(), sections)


def items(section: str) -> list[tuple[list[str], str]]:
    """(names, text) of each item of a section."""
    found: list[tuple[list[str], str]] = []
    for line in re.sub(r"\n +", " ", section).splitlines():
        _, *parts = _ITEM.split(line)
        for names, text in zip(parts[::2], parts[1::2], strict=True):
            found.append((names.split(", "), " ".join(text.split())))
    return found
