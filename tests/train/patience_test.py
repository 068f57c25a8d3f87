"""Runs that end early, and the best checkpoint by any score."""

import pytest

from normjax.core.errors import UserError
from normjax.records import report
from normjax.train.experiment import build_experiment
from normjax.train.loop import train
from tests.train.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")


def scored(workdir):
    """Steps with evaluations, in order, and the steps that the log ends with."""
    records = report.read_metrics(workdir)
    return [r["step"] for r in records if "eval_nll" in r], records[-1]["step"]


def test_a_run_that_gets_no_better_ends(tmp_path, capsys):
    """A learning rate of 0: the first evaluation stays the best."""
    patient = {"patience": 2, "optim__lr": 0.0, "recalibrate_batches": 0}
    norm = "norm=layer_norm,mixer=softmax"
    config = tiny_config(norm, eval_every=1, checkpoint__best_by="nll", **patient)
    scores = train(config, tmp_path)
    assert scores is not None and scored(tmp_path) == ([1, 2, 3], 3)
    assert "ended at step 3: no better score in 2" in capsys.readouterr().out
    again = train(config, tmp_path)
    assert again == scores and scored(tmp_path) == ([1, 2, 3], 3)
    config.patience = 0
    train(config, tmp_path)
    assert scored(tmp_path)[1] == 6


def test_the_best_by_another_score():
    task = build_experiment(tiny_config(checkpoint__best_by="ece")).task
    assert task.ranking()({"ece": 0.1, "top1": 0}) > task.ranking()({"ece": 0.2})
    with pytest.raises(UserError, match=r"best_by .f1.*allowed: ece"):
        build_experiment(tiny_config(checkpoint__best_by="f1"))
