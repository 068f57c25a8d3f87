"""Reports of a few headings, texts, tables and pictures, as Markdown and as HTML."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from normjax.core.files import read, write

STYLE = """
body { max-width: 75em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif;
       color-scheme: light dark; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #8886; padding: .3em .6em; text-align: left; }
img { max-width: 100%; background: white; }
"""


class Heading(NamedTuple):
    """A heading; `level` 1 is the title."""

    text: str
    level: int = 1


class Paragraph(NamedTuple):
    """A paragraph of plain text."""

    text: str


class Table(NamedTuple):
    """A table of plain texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file and what it shows."""

    path: Path
    text: str


Block = Heading | Paragraph | Table | Picture


def write_pages(blocks: Sequence[Block], path: Path) -> None:
    """Write `path`, which ends in .md, and the same as one .html file beside it.

    Pictures are named relative to the Markdown file and held in the HTML file.
    """
    text = "\n\n".join(_markdown(block, path.parent) for block in blocks)
    write(path, (text + "\n").encode())
    body = "\n".join(map(_html, blocks))
    title = next((b.text for b in blocks if isinstance(b, Heading)), path.stem)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )
    write(path.with_suffix(".html"), page.encode())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a bar within a text is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |"
        for line in lines
    )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Table(head, rows):
            return markdown_table(head, rows)
        case Picture(path, text):
            return f"![{text}]({path.relative_to(folder).as_posix()})"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(head, rows):
            lines = [_line("th", head), *(_line("td", row) for row in rows)]
            return f"<table>\n{chr(10).join(lines)}\n</table>"
        case Picture(path, text):
            data = base64.b64encode(read(path)).decode()
            text = html.escape(text, quote=True)
            return f'<p><img src="data:image/png;base64,{data}" alt="{text}"></p>'


def _line(tag: str, texts: Sequence[str]) -> str:
    cells = "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
    return f"<tr>{cells}</tr>"
