"""docs/api, made from docstrings and signatures."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn

from normjax.core.registry import ACCEPTS, Entry
from tests.api.docstrings import Docstring, docstring_of, items
from tests.api.names import Argument, Definition, Name, names, parameters, source

WIDTH = 88
_HEAD = """\
# Python API

Every public name of normjax, with what it computes, its arguments and an example that
runs. `python -m tests.api` writes these pages from the docstrings.
"""
_MARKS = re.compile(r"[\\*<|~]|(?<!\w)_|_(?!\w)")
"""What Markdown takes for its own."""


@functools.cache
def pages() -> dict[str, str]:
    """Text by file name."""
    packages = sorted({name.page for name in names()})
    written = {f"{package}.md": _page(package) for package in packages}
    return {"README.md": _index(packages), **written}


def _index(packages: Iterable[str]) -> str:
    parts = [_HEAD]
    for package in packages:
        anchors = _anchors(package)
        links = (f"[`{n.name}`]({package}.md#{anchors[n.path]})" for n in _on(package))
        first = inline(_module_docstring(f"normjax.{package}").summary)
        parts.append(f"## [normjax.{package}]({package}.md)\n\n{first}\n")
        parts.append("\n".join(_wrapped(links)) + "\n")
    return "\n".join(parts)


def _page(package: str) -> str:
    text = _module_docstring(f"normjax.{package}").text
    links = _anchors(package)
    rows = (
        f"| [`{_title(n)}`](#{links[n.path]}) | {inline(n.docstring.summary)} |"
        for n in _on(package)
    )
    parts = [
        f"# normjax.{package}\n",
        prose(text),
        *_parts(package),
        "| name | |\n| --- | --- |\n" + "\n".join(rows) + "\n",
        *(part for name in _on(package) for part in _entry(name)),
    ]
    return "\n".join(parts)


def _parts(package: str) -> Iterator[str]:
    """What the packages inside say of all that is in them, if they are no names."""
    module = importlib.import_module(f"normjax.{package}")
    entries = {name.path for name in names()}
    for info in pkgutil.iter_modules(module.__path__, f"{module.__name__}."):
        text = _module_docstring(info.name).text if info.ispkg else ""
        if text and info.name not in entries:
            yield f"In `{info.name}`: {prose(text)}"


def _on(package: str) -> list[Name]:
    return [name for name in names() if name.page == package]


@functools.cache
def _anchors(package: str) -> dict[str, str]:
    """Links to the headings of a page by path, as GitHub makes them."""
    seen: dict[str, int] = {}
    found = {}
    for name in _on(package):
        anchor = re.sub(r"[^\w-]", "", _title(name).lower().replace(" ", "-"))
        count = seen[anchor] = seen.get(anchor, -1) + 1
        found[name.path] = f"{anchor}-{count}" if count else anchor
    return found


def _title(name: Name) -> str:
    """Without the package of the page: `build`, `cores.Softmax`."""
    return name.path.split(".", 2)[2]


def _entry(name: Name) -> Iterator[str]:
    yield f"## {_title(name)}\n"
    if signature := _signature(name):
        yield f"```python\n{signature}\n```\n"
    yield from _rows(name)
    yield prose(name.docstring.text)
    for title in ("Attributes", "Args"):
        yield from _listed(title, name.docstring)
    if "__call__" in name.methods:
        yield from _call(name.methods["__call__"])
    for title in ("Returns", "Yields", "Raises"):
        yield from _listed(title, name.docstring)
    if not _is_module(name):
        yield from _methods(name)
    if example := name.docstring.example:
        yield f"```pycon\n{example}\n```\n"


def _rows(name: Name) -> Iterator[str]:
    """The keys under which registries have it, and what it needs and accepts."""
    for registry, entry in name.rows:
        tags = "; ".join(_tags(entry))
        yield f"`{entry.name}` in `{registry}`" + (f": {tags}.\n" if tags else ".\n")


def _tags(entry: Entry) -> Iterator[str]:
    for what, tags in (
        ("accepts", entry.tags & ACCEPTS),
        ("uses", entry.tags - ACCEPTS),
    ):
        if tags:
            yield f"{what} {', '.join(f'`{tag}`' for tag in sorted(tags))}"


def _call(where: Definition) -> Iterator[str]:
    docstring = docstring_of(where.node.body)
    yield f"Called with {prose(docstring.text)}"
    for title in ("Args", "Returns", "Raises"):
        yield from _listed(title, docstring)


def _methods(name: Name) -> Iterator[str]:
    """What one does with what is no Flax module."""
    public = [n for n in name.methods if not n.startswith("_")]
    if public:
        yield "Methods:\n"
        lines = []
        for method in public:
            where = name.methods[method]
            called = "" if _is_property(where.node) else f"({_plain(where)})"
            summary = inline(docstring_of(where.node.body).summary)
            lines.append(f"- `{method}{called}`: {summary}")
        yield "\n".join(lines) + "\n"


def _is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(d) for d in node.decorator_list)


def _plain(where: Definition) -> str:
    return ", ".join(a.name for a in parameters(where))


def _is_module(name: Name) -> bool:
    return isinstance(name.value, type) and issubclass(name.value, nn.Module)


def _signature(name: Name) -> str:
    """How it is built or called, as source."""
    module, node = name.defined
    if isinstance(node, ast.FunctionDef):
        result = f" -> {source(module, node.returns)}" if node.returns else ""
        return _laid_out(name.name, name.arguments, result)
    if not isinstance(node, ast.ClassDef):
        return ""
    lines = []
    if name.arguments:
        lines.append(_laid_out(name.name, name.arguments))
    elif init := _constructor(name):
        lines.append(_laid_out(name.name, parameters(init)))
    elif _is_module(name):
        lines.append(f"{name.name}()")
    if "__call__" in name.methods:
        where = name.methods["__call__"]
        returns = where.node.returns
        result = f" -> {source(where.module, returns)}" if returns else ""
        lines.append(_laid_out("__call__", parameters(where), result))
    return "\n".join(lines)


def _constructor(name: Name) -> Definition | None:
    module, node = name.defined
    made = (n for n in node.body if getattr(n, "name", "") == "__init__")
    return next((Definition(module, n) for n in made), None)


def _laid_out(name: str, arguments: Iterable[Argument], result: str = "") -> str:
    given: list[str] = []
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        before = arguments[i - 1].kind if i else ""
        if argument.kind == "keyword" and before not in ("keyword", "*"):
            given.append("*")
        given.append(argument.text)
        after = arguments[i + 1].kind if i + 1 < len(arguments) else ""
        if argument.kind == "positional" and after != "positional":
            given.append("/")
    line = f"{name}({', '.join(given)}){result}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {g}," for g in given), f"){result}"])


def _module_docstring(module: str) -> Docstring:
    text = importlib.import_module(module).__doc__ or ""
    return docstring_of(ast.parse(f'"""{text}"""').body)


def _listed(title: str, docstring: Docstring) -> Iterator[str]:
    """A section as a list, or as the text that it is."""
    section = docstring.sections.get(title, "")
    if not section:
        return
    if title in ("Returns", "Yields"):
        yield f"{title} {prose(section)}"
        return
    lines = (
        f"- {', '.join(f'`{n}`' for n in given)}: {inline(text)}"
        for given, text in items(section)
    )
    yield f"{title}:\n\n" + "\n".join(lines) + "\n"


def as_text(equation: str) -> str:
    """As it stands."""
    return f"```text\n{inspect.cleandoc(equation)}\n```"


def prose(text: str, displayed: Callable[[str], str] = as_text) -> str:
    """Paragraphs, lists and indented equations, each `displayed`, as Markdown."""
    parts = []
    for block in re.split(r"\n\n+", text):
        if block.startswith("    "):
            parts.append(displayed(block))
        elif block.startswith("- "):
            entries = re.sub(r"\n +", " ", block).splitlines()
            parts.append("\n".join(f"- {inline(e[2:])}" for e in entries))
        else:
            parts.append(inline(block))
    return "\n\n".join(parts) + "\n"


def inline(text: str) -> str:
    """In one line; nothing but what stands in backticks means anything."""
    parts = " ".join(text.split()).split("`")
    return "`".join(
        p if i % 2 else _MARKS.sub(r"\\\g<0>", p) for i, p in enumerate(parts)
    )


def _wrapped(words: Iterable[str]) -> Iterator[str]:
    """Lines of words with commas between them."""
    yield ", ".join(words)
