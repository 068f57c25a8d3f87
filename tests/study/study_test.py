"""Studies: tables from results that are there, runs that are done are not repeated."""

import json
import re

import pytest

from configs.studies import digits_norms
from normjax.core.errors import UserError
from normjax.norms import NORMS
from normjax.study.__main__ import study_command
from normjax.study.study import Study
from normjax.study.together import ALONE, report_together, run_together
from tests.train.tiny import tiny_config

CELLS = [("a", "x"), ("a", "y"), ("b", "x")]


def study(**changes):
    runs = {cell: tiny_config("norm=layer_norm,mixer=softmax") for cell in CELLS}
    return Study("accuracy", "norm", runs, **{"seeds": (0, 1), **changes})


def run_study(study, workdir):
    """Its table, as text."""
    run_together({ALONE: study}, workdir)
    report_together({ALONE: study}, workdir)
    return (workdir / "table.md").read_text()


def put(workdir, cell, seed, **result):
    folder = workdir / "/".join(cell) / str(seed)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))


def test_table_of_finished_runs(tmp_path, capsys):
    for seed, top1 in enumerate((0.5, 0.75)):
        put(tmp_path, ("a", "x"), seed, top1=top1)
        put(tmp_path, ("a", "y"), seed, top1=1.0)
    put(tmp_path, ("b", "x"), 0, top1=0.25)
    put(tmp_path, ("b", "x"), 1, error="diverged: loss is nan at step 3")
    lines = run_study(study(), tmp_path).splitlines()
    assert lines == [
        "| norm | x | y |",
        "| --- | --- | --- |",
        "| a | 62.50 ± 17.68 | 100.00 ± 0.00 |",
        "| b | diverged (1 of 2) | - |",
    ]
    assert "diverged: loss is nan at step 3" in capsys.readouterr().out
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_curves_are_those_of_the_runs(tmp_path, monkeypatch):
    drawn = {}

    def plot(metric, rows, columns, folders, path):
        drawn.update({(r, c): folders(r, c) for r in rows for c in columns})
        path.touch()

    monkeypatch.setattr("normjax.study.study.plot_curves", plot)
    put(tmp_path, ("a", "x"), 0, top1=0.5)
    report_together({ALONE: study(curves="eval_nll")}, tmp_path)
    assert drawn[("a", "x")] == [tmp_path / "a/x/0", tmp_path / "a/x/1"]
    assert "eval_nll by step" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_a_run_is_trained_once_and_a_diverging_one_is_a_result(tmp_path):
    runs = {
        ("plain", "x"): tiny_config("norm=layer_norm,mixer=softmax"),
        ("wild", "x"): tiny_config(
            "norm=none,mixer=softmax", optim__lr=1e30, optim__clip_norm=0.0
        ),
    }
    small = Study("accuracy", "norm", runs, seeds=(3,))
    table = run_study(small, tmp_path)
    assert re.search(r"\| plain \| \d+\.\d\d \|", table)
    assert "| wild | diverged (1 of 1) |" in table
    config = json.loads((tmp_path / "plain/x/3/config.json").read_text())
    assert config["seed"] == 3
    before = (tmp_path / "plain/x/3/metrics.jsonl").stat().st_mtime_ns
    assert run_study(small, tmp_path) == table
    assert (tmp_path / "plain/x/3/metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "missing NAME: give NAME"),
        (["configs/studies/digits_norms.py"], "--workdir is required"),
        (["configs/studies/digit_norms.py", "--workdir=w"], "digits_norms.py"),
        (["configs/studies/digits_norms.py", "--workdir=w", "--only=("], "--only="),
        (["configs/studies/digits_norms.py", "--workdir=w", "--only=zz"], "none of"),
        (["configs/digits.py", "--workdir=w"], "get_study"),
        (["digits_norms", "--workdir=w", "--budget=0"], "--budget=0.0: want minutes"),
        (["digits_norms", "--workdir=w", "--processes=0"], "--processes=0: want at"),
        (["digits_norms", "--workdir=w", "--processes=9999"], "here are"),
        (["digits_norms", "--workdir=w", "--share=2/2"], "--share='2/2': want I/N"),
        (
            ["digits_norms", "--workdir=w", "--share=0/2", "--processes=2"],
            "--processes has no effect with --share",
        ),
    ],
)
def test_wrong_commands(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        study_command(["study", *arguments])


def test_the_norm_study_has_every_norm():
    assert set(digits_norms.NORMS) == {entry.name for entry in NORMS}
