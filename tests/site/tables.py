"""Tables of the pages in docs, by the names in their first column."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.api.names import ROOT

DOCS = ROOT / "docs"
_NUMBER = re.compile(
    r"[*]*-?[\d,]*\.?\d+(?:e-?\d+)?(?: ± [\d.]+)?(?: ?%| MB)?(?: \([\d.]+\))?[*]*"
)


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      page: its file, from docs/ on.  heading: that the table stands under.
      about: the first sentence under that heading.
      columns, cells: of the table and of the row.
    """

    page: str
    heading: str
    about: str
    columns: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.cells[0].strip("`")

    @property
    def is_measured(self) -> bool:
        """Whether most of its cells are numbers."""
        numbers = sum(bool(_NUMBER.fullmatch(cell)) for cell in self.cells[1:])
        return 2 * numbers >= len(self.cells) - 1 > 0


@functools.cache
def rows() -> tuple[Row, ...]:
    """Of all pages that are written by hand."""
    found = []
    for file in sorted(DOCS.rglob("*.md")):
        page = str(file.relative_to(DOCS))
        if not page.startswith("api/"):
            found += _rows(page, file.read_text())
    return tuple(found)


def _rows(page: str, text: str) -> Iterator[Row]:
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    _, *parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    for heading, section in zip(parts[::2], parts[1::2], strict=True):
        blocks = re.split(r"\n\s*\n", section.strip("\n"))
        words = (b for b in blocks if re.match(r"(?!Keys:)[A-Z`[*]", b))
        about = _sentence(next(words, ""))
        for block in blocks:
            if re.match(r"\|.*\n\|[\s:|-]+\n", block):
                head, _, *lines = block.splitlines()
                for line in lines:
                    yield Row(page, heading, about, _cells(head), _cells(line))


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _sentence(text: str) -> str:
    """The first one; a colon or a semicolon ends it as well."""
    first = re.split(r"(?<=[a-z0-9)`])[.;:](?= |$)", " ".join(text.split()))[0]
    return f"{first}." if first else ""


def measured(key: str) -> list[Row]:
    """Rows of numbers of what has this name; no page that repeats others' numbers."""
    return [
        row
        for row in rows()
        if row.key == key and row.is_measured and not row.page.startswith("which_")
    ]


def title(page: str) -> str:
    """The heading of a page."""
    return (DOCS / page).read_text().partition("\n")[0].lstrip("# ")


@functools.cache
def in_depth() -> dict[str, list[str]]:
    """Pages by the keys that their line `Keys: ...` lists."""
    found: dict[str, list[str]] = {}
    for file in sorted(DOCS.rglob("*.md")):
        for line in re.findall(r"^Keys: (.+)$", file.read_text(), re.MULTILINE):
            for key in re.findall(r"`(\w+)`", line):
                found.setdefault(key, []).append(str(file.relative_to(DOCS)))
    return found
