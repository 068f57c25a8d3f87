"""Verdicts on claims, by hand; and the pages that hold them."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from normjax.study import claims, pages
from normjax.study.cells import Measure
from normjax.study.claims import Claim, Sample, judge, sample_of, verdict
from normjax.study.study import Study, as_study
from normjax.study.together import report_together
from tests.study.study_test import put

A, B = ("a", "x"), ("b", "x")


def test_samples():
    values = [0.25, 0.75, 0.5, 0.5]
    mean, spread, count = sample_of(values, worst=0.0)
    # sum of squares around 0.5: 2 * 0.0625, over three
    assert (mean, count) == (0.5, 4)
    np.testing.assert_allclose(spread, math.sqrt(0.125 / 3), rtol=1e-12)
    assert sample_of([0.5, math.nan], worst=0.0)[0] == 0.25
    assert sample_of([0.5, math.nan], worst=math.inf) == (math.inf, 0.0, 2)
    assert sample_of([0.5], worst=0.0) == (0.5, 0.0, 1)
    assert math.isnan(sample_of([], worst=0.0).mean)


@pytest.mark.parametrize(
    "more,less,margin,no_less,expected",
    [
        # noise: hypot(3, 4) = 5
        ((10.1, 3), (5.0, 4), 0.0, False, claims.SEEN),
        ((9.9, 3), (5.0, 4), 0.0, False, claims.WITHIN_NOISE),
        ((5.0, 3), (9.9, 4), 0.0, False, claims.WITHIN_NOISE),
        ((5.0, 3), (10.1, 4), 0.0, False, claims.OPPOSITE),
        ((10.1, 3), (5.0, 4), 6.0, False, claims.NOT_SEEN),
        ((11.1, 3), (5.0, 4), 6.0, False, claims.SEEN),
        ((5.0, 0), (5.0, 0), 0.0, False, claims.WITHIN_NOISE),
        ((math.inf, 0), (5.0, 0), 0.0, False, claims.SEEN),
        ((5.0, 0), (math.inf, 0), 0.0, False, claims.OPPOSITE),
        ((math.inf, 0), (math.inf, 0), 0.0, False, claims.NOT_SEEN),
        ((math.nan, 0), (5.0, 0), 0.0, False, claims.NOT_SEEN),
        ((5.0, 3), (5.5, 4), 1.0, True, claims.WITHIN_NOISE),
        ((5.0, 0.3), (5.4, 0.4), 1.0, True, claims.SEEN),
        ((5.0, 0.3), (5.6, 0.4), 1.0, True, claims.OPPOSITE),
        ((9.0, 3), (5.0, 4), 1.0, True, claims.SEEN),
        ((5.0, 3), (7.5, 4), 1.0, True, claims.WITHIN_NOISE),
        ((5.0, 0), (7.5, 0), 1.0, True, claims.OPPOSITE),
        ((5.0, 0), (5.0, 0), 0.0, True, claims.SEEN),
    ],
)
def test_verdicts(more, less, margin, no_less, expected):
    more, less = Sample(more[0], more[1], 3), Sample(less[0], less[1], 3)
    assert verdict(more, less, margin, no_less=no_less) == expected


def test_judged_by_a_metric_and_against_a_number():
    results = {A: [{"top1": 0.9, "slope": 2.0}], B: [{"error": "diverged"}]}
    claim = Claim("A beats B.", "Who, 2020", "90 : 80", A, B)
    found = judge(claim, results, "top1", worst=0.0)
    assert (found.more.mean, found.less.mean, found.verdict) == (0.9, 0.0, "seen")
    steep = claim._replace(less=2.5, metric="slope")
    found = judge(steep, results, "top1", worst=0.0)
    assert (found.more.mean, found.verdict) == (2.0, "opposite")
    # What was never measured is no divergence.
    lacking = judge(claim, {A: [{"top1": 0.9}], B: [{"slope": 1.0}]}, "top1", 0.0)
    assert (lacking.less.count, lacking.verdict) == (0, "not seen")


def test_report_of_several_studies(tmp_path, capsys):
    claim = Claim("A beats | B.", "Who, 2020", "90 : 80", A, B)
    runs = dict.fromkeys((A, B), Measure("not run"))
    one = as_study({"title": "T", "rows": "r", "runs": runs, "claims": (claim,)})
    two = Study("U", "r", runs, claims=(claim._replace(more=B, less=A),))
    for name in ("one", "two"):
        for seed in range(3):
            put(tmp_path / name, A, seed, top1=0.9 + 0.01 * seed, seconds=20)
            put(tmp_path / name, B, seed, top1=0.8, seconds=10)
    report_together({"one": one, "two": two}, tmp_path)
    text = (tmp_path / "claims.md").read_text()
    row = r"\| one \| A beats \\\| B. \| Who, 2020 \| 90 : 80 \|"
    assert re.search(
        rf"{row} top1: 91.00 ± 1.00 against 80.00 ± 0.00 \| seen \| 1.5 \|", text
    )
    assert re.search(r"80.00 ± 0.00 against 91.00 ± 1.00 \| opposite \|", text)
    assert "2 claims, 1 of them seen, 3 minutes of runs." in text
    assert "6 runs, 1.5 minutes." in (tmp_path / "one" / "report.md").read_text()
    assert "opposite" in capsys.readouterr().out


class Reader(HTMLParser):
    """Tags that are open, text, and the pictures."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_pages(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    blocks = [
        pages.Heading("1 < 2"),
        pages.Paragraph("x & y"),
        pages.Table(("a", "b"), [("<b>", "c|d")]),
        pages.Picture(tmp_path / "a.png", 'a "dot"'),
    ]
    pages.write_pages(blocks, tmp_path / "p.md")
    assert (tmp_path / "p.md").read_text() == (
        "# 1 < 2\n\nx & y\n\n| a | b |\n| --- | --- |\n| <b> | c\\|d |\n\n"
        '![a "dot"](a.png)\n'
    )
    reader = Reader()
    reader.feed((tmp_path / "p.html").read_text())
    assert not reader.open
    assert {"1 < 2", "x & y", "<b>", "c|d"} <= set(reader.text)
    (image,) = reader.images
    assert image["alt"] == 'a "dot"'
    assert image["src"].startswith("data:image/png;base64,iVBOR")
