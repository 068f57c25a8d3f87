"""Scalars for Weights & Biases, to a stand-in for its package."""

import sys
import types

import pytest

from normjax.cli.main import run, train_command
from normjax.core.errors import UserError
from normjax.records import report
from normjax.records.wandb_run import WandbRun


class FakeRun:
    """Keeps what it is given."""

    def __init__(self, **arguments):
        self.arguments, self.logged, self.metrics = arguments, [], {}
        self.finished = False

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, scalars):
        self.logged.append(scalars)

    def finish(self):
        self.finished = True


@pytest.fixture
def begun(monkeypatch):
    """Runs that were begun in the package, in order."""
    runs = []

    def init(**arguments):
        if arguments["project"] == "a/b":
            raise ValueError("no such\n  project")
        runs.append(FakeRun(**arguments))
        return runs[-1]

    package = types.ModuleType("wandb")
    monkeypatch.setattr(package, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", package)
    return runs


def log_to(project, workdir, resumed, steps):
    log = report.MetricLog(workdir, resumed, WandbRun(project, workdir, {"seed": 3}))
    for step in steps:
        log.write(step, {"loss": 1 / step, "lam": float("nan")})
    log.close()


def test_the_same_scalars_and_the_same_run_when_a_run_goes_on(begun, tmp_path):
    log_to("digits", tmp_path, 0, (1, 2, 3))
    log_to("digits", tmp_path, 2, (3, 4))
    log_to("other", tmp_path, 4, (5,))
    first, second, third = begun
    assert first.logged == [{"step": s, "loss": 1 / s} for s in (1, 2, 3)]
    together = [*first.logged[:2], *second.logged, *third.logged]
    assert together == report.read_metrics(tmp_path)
    arguments = [run.arguments for run in begun]
    assert arguments[0]["id"] == arguments[1]["id"] != arguments[2]["id"]
    assert {a["resume"] for a in arguments} == {"allow"}
    assert arguments[0]["config"] == {"seed": 3}
    assert arguments[0]["dir"] == str(tmp_path)
    assert first.metrics == {"step": None, "*": "step"}
    assert all(run.finished for run in begun)


def test_what_does_not_begin(begun, tmp_path):
    with pytest.raises(UserError, match=r"config\.wandb='a/b': no such project"):
        WandbRun("a/b", tmp_path, {})


def test_without_the_package(monkeypatch, tmp_path, capfd, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
    assert run(train_command, ["train.py", *flags, "--config.wandb=digits"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: config.wandb='digits' needs wandb (")
    assert line.endswith("pip install 'normjax[wandb]'")
    assert not (tmp_path / "run").exists()
