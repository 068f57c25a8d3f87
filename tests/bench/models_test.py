"""The rows of the tables of models."""

import pytest

from normjax.bench.models import OURS, model_rows, torch_rows

TIMES = {
    ("a", OURS): {"forward 1": 8.0, "folded 1": 4.0, "train 16": 40.0},
    ("a", "torch"): {"forward 1": 16.0, "train 16": 50.0},
    ("b", OURS): {"forward 1": 2.0, "folded 1": 2.0, "train 16": 30.0},
}


def test_sizes_times_and_ratios_to_the_first():
    sizes = {"a": (10, 1.0, 2.0), "b": (20, 3.0, 4.0)}
    rows = model_rows(sizes, TIMES)
    assert rows[:2] == [("a", 10, 1.0, 2.0, 8, 4, 40), ("b", 20, 3.0, 4.0, 2, 2, 30)]
    assert rows[2:] == [("b / a", "", "", "", 0.25, 0.5, pytest.approx(0.75))]


def test_ours_folded_or_not_stands_beside_torch_unfolded():
    times = {key: TIMES[key] for key in TIMES if key[0] == "a"}
    assert torch_rows(times) == [
        ("a, normjax", 8, 4, 40),
        ("a, torch", 16, "", 50),
        ("a / torch", 0.5, 0.25, pytest.approx(0.8)),
    ]
