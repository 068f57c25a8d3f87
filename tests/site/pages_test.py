"""Pages say what is there, and their examples run."""

import re

import pytest

from normjax import mixers, models, norms
from normjax.core.registry import Entry
from normjax.families import PRESETS
from tests.api.names import ROOT
from tests.site import catalogue, examples, measure, tables
from tests.site.kinds import KINDS

DOCS = ROOT / "docs"
COMPILE = {
    *("first_run.md", "fold_your_model.md", "generate.md", "reparam.md"),
    "use_in_your_model.md",
}
"""Pages that compile models: make docs runs them, and readme_test the last."""
EVERY = pytest.mark.parametrize("page", examples.pages(), ids=lambda page: page.stem)


@pytest.mark.parametrize(
    "page",
    [p for p in examples.pages() if examples.program(p)[1] and p.name not in COMPILE],
    ids=lambda page: page.stem,
)
def test_its_blocks_run(page):
    assert examples.run(page)


@EVERY
def test_its_commands_are_there(page):
    for command, arguments in examples.commands(page):
        examples.parse(command, arguments)


def test_enough_commands_are_parsed():
    found = [c for page in examples.pages() for c in examples.commands(page)]
    assert sum(examples.parse(*c) for c in found) > 15
    with pytest.raises(LookupError):
        examples.parse("python -m normjax.nothing", [])


@pytest.mark.parametrize("page", ["which_norm.md", "which_mixer.md"])
def test_its_numbers_are_those_that_were_measured(page):
    rows = [row for row in tables.rows() if row.page == page and row.is_measured]
    assert len(rows) > 6
    for row in rows:
        known = [set(r.cells[1:]) for r in tables.measured(row.key)]
        assert any(set(row.cells[1:]) <= cells for cells in known), row


def test_charts_name_columns_that_are_there():
    for page in ("which_norm.md", "which_mixer.md"):
        charts = re.findall(r"<!-- chart: (\S+) (.+) -->", (DOCS / page).read_text())
        assert charts
        for source, column in charts:
            assert any(r.page == source and column in r.columns for r in tables.rows())


def test_counts():
    registries = (norms.NORMS, mixers.MIXERS, models.MODELS)
    counts = [*(sum(1 for _ in registry) for registry in registries), len(PRESETS)]
    for page in ("README.md", "docs/index.md"):
        text = " ".join((ROOT / page).read_text().split())
        parts = [f"{counts[0]} norms", f"{counts[1]} token mixers"]
        parts += [f"{counts[2]} architectures", f"{counts[3]} published presets"]
        for part in parts:
            assert part in text, (page, part)


def test_keys_in_depth_are_keys():
    known = {entry.name for kind in KINDS for entry in kind.registry}
    assert set(tables.in_depth()) <= known
    assert len(tables.in_depth()) > 60


def test_tables_of_a_page():
    (row,) = (r for r in tables.measured("sla") if r.page == "mixers/digits.md")
    assert row.columns == ("mixer", "layer_norm", "prepbn")
    assert row.heading == "Every mixer on scanned digits"
    assert row.about == "Test top-1 in percent (360 scans), one seed."


def test_a_page_of_a_component():
    kind = next(kind for kind in KINDS if kind.folder == "activations")
    page = catalogue.page(kind, kind.registry["smelu"])
    assert page.startswith("# smelu\n") and "<mfrac>" in page and "<svg" in page
    assert "Shamir et al., 2022" in page and "](../../activations.md)" in page
    assert "--config.model.activation=smelu" in page and "| `beta` |" in page


def test_what_has_no_docstring_has_no_page(monkeypatch):
    kind = KINDS[0]
    silent = catalogue.name_of(kind, norms.NORMS["none"])
    monkeypatch.setitem(
        silent.__dict__, "docstring", silent.docstring._replace(text="")
    )
    with pytest.raises(catalogue.MissingText, match="NoNorm"):
        catalogue.page(kind, norms.NORMS["none"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        *(
            ("norm", norms.NORMS[n])
            for n in ("prepbn", "ghost_batch_norm", "group_norm")
        ),
        *(("mixer", mixers.MIXERS[n]) for n in ("sla", "window", "local_attention")),
    ],
    ids=lambda value: value.name if isinstance(value, Entry) else value,
)
def test_what_is_kept_is_what_is_computed(kind, entry):
    found, known = measure.measured(kind, entry.name), measure.kept()[kind][entry.name]
    reads = [
        [[int(level) for level in row] for row in one.pop("reads", [])]
        for one in (found, known)
    ]
    assert found == known
    for row, expected in zip(*reads, strict=True):
        assert row == pytest.approx(expected, abs=1)  # a root is rounded up


def test_causes_in_closed_form():
    """BatchNorm reads a channel of all, LayerNorm a token, GroupNorm half of one."""
    known = measure.kept()["norm"]
    places = [(e, i, c) for e in range(4) for i in range(4) for c in range(6)]
    rules = {
        "batch_norm": lambda e, i, c: c == 2,
        "layer_norm": lambda e, i, c: (e, i) == (1, 1),
        "instance_norm": lambda e, i, c: (e, c) == (1, 2),
        "group_norm": lambda e, i, c: e == 1 and c < 3,
        "ghost_batch_norm": lambda e, i, c: e < 2 and c == 2,
        "none": lambda e, i, c: (e, i, c) == (1, 1, 2),
    }
    for name, rule in rules.items():
        expected = "".join("01"[rule(*place)] for place in places)
        assert known[name]["training"] == expected, name
