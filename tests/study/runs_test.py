"""Seeds, steps and processes of a study, with measurements in the place of training."""

import json
import sys
from typing import Any

import pytest

from normjax.core.errors import UserError
from normjax.study import runs
from normjax.study.cells import Measure
from normjax.study.processes import parse_share, run_shares
from normjax.study.runs import Share
from normjax.study.study import Study, run_cells
from normjax.study.together import report_together, run_together
from tests.train.tiny import tiny_config

CELLS = [("a", "x"), ("b", "x"), ("c", "x")]


@pytest.fixture
def counting(monkeypatch):
    """Makes studies of measurements that note what they are asked."""

    def make(done, clock=None, minutes=0.0):
        def measure(seed, folder, row):
            done.append((row, seed))
            if clock is not None:
                clock.now += 60 * minutes
            return {"top1": 0.5}

        name = str(len(rows))
        rows[name] = measure
        cells = {cell: Measure(name, {"row": cell[0]}) for cell in CELLS}
        return Study("T", "r", cells)

    rows = {}
    monkeypatch.setattr(runs, "MEASURES", rows)
    return make


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_a_whole_table_first_then_the_next_seed_and_nothing_twice(tmp_path, counting):
    study = counting(done := [])
    run_together({"": study}, tmp_path)
    assert done == [(row, seed) for seed in range(3) for row in "abc"]
    run_together({"": study}, tmp_path)
    assert len(done) == 9


def test_results_of_a_changed_cell_are_refused(tmp_path, counting):
    study = counting([])
    run_cells(study, tmp_path, CELLS)
    changed = {c: m._replace(arguments={"row": "z"}) for c, m in study.runs.items()}
    with pytest.raises(UserError, match="is of a cell that the study has changed"):
        run_cells(study._replace(runs=changed), tmp_path, CELLS)
    config = tiny_config()
    assert runs._digest(config) == runs._digest(tiny_config())
    assert runs._digest(config) != runs._digest(tiny_config(optim__lr=0.5))


def test_shares_are_all_and_apart(tmp_path, counting):
    study = counting(done := [])
    for index in range(2):
        run_cells(study, tmp_path / str(index), CELLS, Share(index, 2))
    assert sorted(done) == [(row, seed) for row in "abc" for seed in range(3)]


@pytest.mark.parametrize(
    "minutes,seeds", [(100.0, 3), (7.0, 2), (6.0, 2), (5.9, 1), (0.1, 1)]
)
def test_a_budget_leaves_out_seeds(tmp_path, monkeypatch, counting, minutes, seeds):
    clock, done = Clock(), []
    monkeypatch.setattr(runs, "time", clock)
    monkeypatch.setattr("normjax.study.study.time", clock)
    # Three cells of a minute: three minutes a seed.
    run_cells(counting(done, clock, 1.0), tmp_path, CELLS, minutes=minutes)
    assert len(done) == 3 * seeds


def test_a_budget_of_several_studies_passes_on(tmp_path, monkeypatch, counting):
    clock, done = Clock(), []
    monkeypatch.setattr(runs, "time", clock)
    monkeypatch.setattr("normjax.study.study.time", clock)
    monkeypatch.setattr("normjax.study.together.time", clock)
    one, two = counting(done, clock, 0.0), counting(done, clock, 1.0)
    # The first takes no time: nine minutes for the second, after its pilot.
    run_together({"one": one, "two": two}, tmp_path, minutes=10.0)
    assert len(done) == 2 * (1 + 9)


@pytest.mark.parametrize("minutes,part", [(60.0, 1.0), (1.5, 0.5), (0.1, 0.25)])
def test_a_budget_leaves_out_steps(tmp_path, minutes, part):
    folder = tmp_path / "pilot"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"seconds": 60}))
    config: Any = tiny_config("norm=layer_norm,mixer=softmax")
    assert runs.part_of_steps(config, 3, minutes, tmp_path) == part
    assert runs.part_of_steps(config, 3, 1000.0, tmp_path) == part  # for good
    short: Any = runs.shortened(config, part)
    for name in ("total_steps", "eval_every"):
        assert short[name] == max(1, round(part * config[name]))
    assert short.model == config.model


def test_the_report_says_how_many_steps(tmp_path, counting):
    (tmp_path / "steps.json").write_text('{"part": 0.5}')
    study = counting([])
    run_together({"": study}, tmp_path)
    report_together({"": study}, tmp_path)
    assert "0.5 of their steps" in (tmp_path / "report.md").read_text()


SCRIPT = """
import os, sys
from pathlib import Path
share = sys.argv[-1].removeprefix("--share=")
cores = sorted(os.sched_getaffinity(0))
Path(sys.argv[1], share.replace("/", "of")).write_text(str(cores))
sys.exit(int(sys.argv[2]) if share.startswith("0") else 0)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_processes(tmp_path, code):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(code)]
    if code:
        with pytest.raises(UserError, match=r"processes \[0\] of 2 failed"):
            run_shares(command, 2)
    else:
        run_shares(command, 2)
    cores = [json.loads((tmp_path / f"{i}of2").read_text()) for i in range(2)]
    assert cores[0] and cores[1] and not set(cores[0]) & set(cores[1])


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "2/2", "-1/2", "a/b", "1/2/3"])
def test_no_share(text):
    with pytest.raises(UserError, match="want I/N"):
        parse_share(text)
    assert parse_share("1/2") == (1, 2)
