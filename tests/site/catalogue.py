"""Pages of the catalogue: one for each component, from its docstring and its row."""

import functools
import html
import inspect
import re
from collections.abc import Iterator

from normjax.core.registry import ACCEPTS, Entry
from tests.api.names import Name, names
from tests.api.pages import inline, prose
from tests.site import equations, figures, tables
from tests.site.kinds import KINDS, Kind, command_of, python_of

_CITED = r"\(([^()]*?\b(?:19|20)\d\d[^()]*?)\)"
_COST = re.compile(r"\bO\(.*?(?:multiply-adds|additions)[^.;]*")
_EQUATION = re.compile(r"(y = |softmax\(|W' = |x \+ |min\()")
WORDS = {
    "seq": "sequences [B, L, C]", "grid": "maps [B, H, W, C]",
    "causal": "causal models", "decode": "decoding token by token",
    "memory": "cross-attention", "mask": "a mask", "axis_name": "a mesh axis",
    "batch_stats": "running statistics", "rng": "a random key",
    "overwrite_with_gradient": "state written in the backward pass",
    "condition": "a condition",
}  # fmt: skip


class MissingText(Exception):
    """A component without what its page is made of."""


def pages() -> dict[str, str]:
    """Markdown by file."""
    found = {"catalogue/index.md": _front()}
    for kind in KINDS:
        found[f"catalogue/{kind.folder}/index.md"] = _index(kind)
        for entry in kind.registry:
            found[f"catalogue/{kind.folder}/{entry.name}.md"] = page(kind, entry)
    return found


@functools.cache
def _named() -> dict[tuple[str, str], Name]:
    return {(r, entry.name): name for name in names() for r, entry in name.rows}


def name_of(kind: Kind, entry: Entry) -> Name:
    """What has its docstring."""
    name = _named()[kind.rows, entry.name]
    if not name.docstring.text:
        raise MissingText(f"{name.path} has no docstring")
    return name


def _front() -> str:
    cards = "\n".join(
        f'<a class="card" href="{kind.folder}/index.html"><strong>{kind.title}</strong>'
        f"<span>{sum(1 for _ in kind.registry)}</span></a>"
        for kind in KINDS
    )
    return (
        "# Catalogue\n\nEvery component, from its own docstring and registry row: "
        "equation, picture, cost, options, paper, and what was measured of it.\n\n"
        f'<div class="cards plain">\n{cards}\n<a class="card" '
        'href="families/index.html"><strong>Published networks</strong>'
        f"</a>\n</div>\n"
    )


def _index(kind: Kind) -> str:
    groups: dict[str, list[str]] = {}
    for entry in kind.registry:
        summary = name_of(kind, entry).docstring.summary
        drawn = kind.figure(entry, True)
        picture = drawn[0] if drawn else ""
        equation, text = _taken_apart(summary)
        text = html.escape(re.sub(r"\s*" + _CITED, "", text).replace("`", ""))
        try:
            shown = equations.inline(equation, kind.times) if equation else ""
        except equations.EquationError:
            shown = html.escape(equation)
        text = f"{shown} {text}"
        groups.setdefault(kind.group(entry), []).append(
            f'<a class="card" href="{entry.name}.html">{picture}'
            f"<strong>{entry.name.replace('_', '_<wbr>')}</strong>"
            f"<span>{text}</span></a>"
        )
    parts = [f"# {kind.title}\n", f"{kind.about}\n"]
    for group, cards in sorted(groups.items(), key=lambda item: -len(item[1])):
        parts.append(f"## {group}\n" if group else "")
        parts.append('<div class="cards">\n' + "\n".join(cards) + "\n</div>\n")
    return "\n".join(parts)


def page(kind: Kind, entry: Entry) -> str:
    name = name_of(kind, entry)
    equation, rest = _taken_apart(name.docstring.text)
    parts = [f"# {entry.name}\n", f"`{name.path}`{{ .path }}\n"]
    if equation:
        parts.append(_displayed(equation, kind) + "\n")
    text = prose(rest, lambda block: _displayed(block, kind))
    parts.append(_squared(text))
    if drawn := kind.figure(entry, False):
        parts.append(figures.figure(*drawn) + "\n")
    parts += _facts(kind, entry, name)
    parts += _use(kind, entry)
    parts += _options(name)
    parts += _measured(entry)
    parts.append(f"## Example\n\n```pycon\n{name.docstring.example}\n```\n")
    return "\n".join(parts)


def _taken_apart(text: str) -> tuple[str, str]:
    """The equation that a docstring begins with, and all else."""
    summary, _, rest = text.partition("\n\n")
    summary = " ".join(summary.split())
    if not _EQUATION.match(summary):
        return "", text
    match = re.match(rf"(.+?)(?:\s*{_CITED}|(?<! )[.:] |\.$)(.*)", summary)
    equation, behind = (match[1], match[3]) if match else (summary, "")
    behind = re.sub(r"^[.,:;]?\s*", "", behind)
    return equation, "\n\n".join(filter(None, (behind, rest)))


def _displayed(equation: str, kind: Kind) -> str:
    """Typeset; what is no equation stays as it is."""
    try:
        return equations.block(equation, kind.times)
    except equations.EquationError:
        return f"```text\n{inspect.cleandoc(equation)}\n```"


def _squared(text: str) -> str:
    """`w**2` in Markdown of prose, where it is no code, as people write it."""
    return text.replace(r"\*\*2", "²")


def _facts(kind: Kind, entry: Entry, name: Name) -> Iterator[str]:
    rows = []
    for what, tags in (("takes", entry.tags & ACCEPTS), ("uses", entry.tags - ACCEPTS)):
        if tags:
            rows.append((what, ", ".join(WORDS[tag] for tag in sorted(tags))))
    joined = " ".join(name.docstring.text.split())
    if cost := _COST.search(joined):
        rows.append(("cost", _squared(inline(cost[0]))))
    rows += kind.facts(entry)
    if sources := dict.fromkeys(re.findall(_CITED, joined)):
        rows.append(("source", inline("; ".join(sources))))
    pages = tables.in_depth().get(entry.name, [])
    links = [f"[{tables.title(page)}](../../{page})" for page in pages]
    anchor = re.sub(r"[^\w-]", "", name.path.split(".", 2)[2].lower())
    reference = f"[`{name.path}`](../../api/{name.page}.md#{anchor})"
    rows.append(("more", ", ".join([*links, reference])))
    yield "| | |\n| --- | --- |\n" + "\n".join(f"| {w} | {t} |" for w, t in rows) + "\n"


def _use(kind: Kind, entry: Entry) -> Iterator[str]:
    python, command = python_of(kind, entry), command_of(kind, entry)
    if python or command:
        yield "## Use it\n"
    if python:
        yield f"```python\n{python}\n```\n"
    if command:
        yield f"```sh\n{command}\n```\n"


def _options(name: Name) -> Iterator[str]:
    described = {
        word: text for words, text in name.docstring.arguments for word in words
    }
    if not name.arguments:
        return
    yield "## Options\n\n| option | default | |\n| --- | --- | --- |"
    for argument in name.arguments:
        default = argument.text.partition(" = ")[2] or argument.text.partition("=")[2]
        shown = f"`{default}`".replace("|", "\\|") if default else "required"
        text = inline(described.get(argument.name, ""))
        yield f"| `{argument.name}` | {shown} | {text} |"
    yield ""


def _measured(entry: Entry) -> Iterator[str]:
    found = tables.measured(entry.name)
    if not found:
        return
    yield "## Measured\n"
    for row in found:
        title = tables.title(row.page)
        where = title if row.heading == title else f"{title}: {row.heading}"
        head = " | ".join(row.columns[1:])
        yield f"[{where}](../../{row.page}). {row.about}\n"
        yield f"| {head} |\n|{' --- |' * (len(row.columns) - 1)}"
        yield f"| {' | '.join(row.cells[1:])} |\n"
