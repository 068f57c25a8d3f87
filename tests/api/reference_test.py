"""Every public name says what it is, lists its arguments, and shows an example.

The names are those of `__all__` of the packages and of the registries; `python -m
tests.api` writes docs/api from the same docstrings.
"""

import doctest
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import pytest

from tests.api.__main__ import FOLDER
from tests.api.names import Name, homes, names
from tests.api.pages import pages

NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")
SPACE = re.compile(r"(?<=\[) | (?=\])")
"""Inside of brackets, where NumPy aligns columns."""
PROGRAMS: dict[str, Any] = {}
"""Compiled methods of modules, by what they and their arguments are."""
EVERY = pytest.mark.parametrize("name", names(), ids=lambda name: name.path)
WHOLE_MODELS = {"adapt", "fusion", "generate"}
"""Packages whose examples compile models."""
RUN = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            id=name.path,
            marks=[pytest.mark.slow] if name.page in WHOLE_MODELS else [],
        )
        for name in names()
    ],
)


def fail(name: Name, what: str):
    where = f"{name.path} ({name.defined.module})"
    pytest.fail(f"{where}: {what}", pytrace=False)


@EVERY
def test_it_says_what_it_is_and_lists_its_arguments(name):
    if not name.docstring.text:
        fail(name, "write a docstring")
    items = name.docstring.arguments
    listed = {word.lstrip("*") for words, _ in items for word in words}
    title = "Attributes" if isinstance(name.value, type) else "Args"
    known = {argument.name for argument in name.arguments}
    if missing := sorted(known - listed):
        fail(name, f"list {', '.join(missing)} under '{title}:' of its docstring")
    if known and (stale := sorted(listed - known - set(dir(name.value)))):
        fail(name, f"has no {', '.join(stale)}: take that out of '{title}:'")


@EVERY
def test_it_shows_an_example(name):
    if ">>> " not in name.docstring.example:
        fail(name, "add 'Example:' with lines of '>>> ' and what they print")
    test = example_of(name)
    if not any(example.want for example in test.examples):
        fail(name, "its example shows no result")
    used = " ".join(e.source + e.want for e in test.examples if not is_import(e))
    words = {name.name, *(entry.name for _, entry in name.rows)}
    of_others = hasattr(name.value, "_fields")  # results of functions
    if not of_others and not words & set(re.findall(r"\w+", used)):
        fail(name, "its example does not use it")


@RUN
def test_its_example_runs(name, whole_modules, prepared, monkeypatch):
    monkeypatch.setenv("NORMJAX_DATA_DIR", str(prepared))
    test = example_of(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(checker=Rounded(), verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    if runner.failures:
        fail(name, "".join(report))


def test_docs_api_is_what_the_docstrings_say():
    """`python -m tests.api` writes it."""
    committed = {file.name: file.read_text() for file in FOLDER.iterdir()}
    changed = sorted(
        page
        for page in committed.keys() | pages().keys()
        if committed.get(page) != pages().get(page)
    )
    assert not changed, f"docs/api: run python -m tests.api, for {', '.join(changed)}"


def test_every_name_has_a_place():
    """A heading that the index and the table of its page link to."""
    for name in names():
        page = pages()[f"{name.page}.md"]
        assert f"\n## {name.path.split('.', 2)[2]}\n" in page
        assert f"]({name.page}.md#" in pages()["README.md"]
    links = re.findall(r"\]\((\w+\.md)?#([\w-]+)\)", "".join(pages().values()))
    assert len(links) == 2 * len(names())


def test_all_packages_are_seen():
    assert {"normjax.norms", "normjax.mixers.cores", "normjax.optim"} <= set(homes())
    found = {name.path for name in names()}
    assert {"normjax.norms.LayerNorm", "normjax.models.SwiGLU"} <= found
    assert "normjax.mixers.ops.decay.chunked" in found


def example_of(name):
    code = name.docstring.example
    return doctest.DocTestParser().get_doctest(code, {}, name.path, None, None)


def is_import(example):
    return example.source.startswith(("import ", "from "))


class Rounded(doctest.OutputChecker):
    """Numbers with a point agree to three digits: accelerators round otherwise."""

    def check_output(self, want, got, optionflags):
        want, got = (SPACE.sub("", " ".join(text.split())) for text in (want, got))
        if NUMBER.sub("#", want) != NUMBER.sub("#", got):
            return False
        numbers = ([float(n) for n in NUMBER.findall(text)] for text in (want, got))
        return next(numbers) == pytest.approx(next(numbers), rel=1e-3, abs=1e-3)


@pytest.fixture
def whole_modules(monkeypatch):
    """Modules are called in one program, not operation by operation, alike ones in the
    same: it is a third of the time."""
    for method in ("init_with_output", "apply"):
        monkeypatch.setattr(nn.Module, method, compiled(getattr(nn.Module, method)))


def compiled(method):
    @functools.wraps(method)
    def call(self, *args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return method(self, *args, **kwargs)
        arrays = [leaf if isinstance(leaf, jax.Array) else None for leaf in leaves]
        pairs = zip(leaves, arrays, strict=True)
        others = [leaf for leaf, array in pairs if array is None]
        key = repr((method.__name__, self, tree, others))

        def program(arrays):
            given = zip(leaves, arrays, strict=True)
            merged = [leaf if array is None else array for leaf, array in given]
            args, kwargs = jax.tree.unflatten(tree, merged)
            return method(self, *args, **kwargs)

        return PROGRAMS.setdefault(key, jax.jit(program))(arrays)

    return call


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")
