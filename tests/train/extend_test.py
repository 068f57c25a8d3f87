"""Runs that are made longer than they were."""

import json

import chex
import jax
import numpy as np
import pytest

from normjax.config.overrides import Override
from normjax.core.errors import UserError
from normjax.records import report
from normjax.train import loop
from normjax.train.config import keep_config, kept_config
from normjax.train.experiment import build_experiment
from normjax.train.extend import extended, tell
from normjax.train.recalibrate import PROGRESS_FILE
from tests.train.loop_test import signal_at, state_of, steps_kept
from tests.train.tiny import progressive_config, tiny_config, untrained_run

pytestmark = pytest.mark.usefixtures("compiled_once")


def config_of(total, **changes):
    """Of a constant rate."""
    changes |= {"optim__warmup_fraction": 0.0, "optim__final_lr_fraction": 1.0}
    return tiny_config("norm=layer_norm,mixer=softmax", total_steps=total, **changes)


def extend(workdir, total):
    """As `--workdir=... --config.total_steps=...`."""
    config = kept_config(workdir, [Override("total_steps", str(total))])
    return loop.train(extended(config, workdir), workdir)


@pytest.mark.slow
def test_an_extended_run_is_the_long_one(tmp_path, monkeypatch, capsys):
    """Stopped on its way, too. Where no rate and no norm go by the total."""
    long, short = tmp_path / "long", tmp_path / "short"
    scores = loop.train(config_of(9), long)
    loop.train(config_of(3), short)
    (short / PROGRESS_FILE).write_bytes(b"of the end that was")
    with monkeypatch.context() as patch:
        signal_at(patch, 3 + 1)
        assert extend(short, 9) is None
    said = capsys.readouterr().out
    assert "extended from 3 to 9 steps" in said and "stay those of 3 steps" in said
    assert 3 < max(steps_kept(short)) < 9 and not (short / PROGRESS_FILE).exists()
    again = extended(kept_config(short), short)
    assert loop.train(again, short) == scores
    assert "extended from" not in capsys.readouterr().out
    chex.assert_trees_all_equal(state_of(short), state_of(long))
    kept = json.loads((short / "config.json").read_text())
    assert (kept["total_steps"], kept["fractions_of"]) == (9, 3)
    records = report.read_metrics(short)
    assert [r["step"] for r in records if r.get("extended_to") == 9] == [3]


def test_fractions_stay_those_of_the_first_total(tmp_path):
    """Of 20 updates; the cosine ends at the new end: by its equation."""
    shape = {"optim__warmup_fraction": 0.15, "optim__final_lr_fraction": 0.1}
    untrained_run(progressive_config(total_steps=20, **shape), tmp_path)
    config = extended(progressive_config(total_steps=100, **shape), tmp_path)
    keep_config(config, tmp_path)
    config = extended(progressive_config(total_steps=203, **shape), tmp_path)
    keep_config(config, tmp_path)
    experiment = build_experiment(kept_config(tmp_path))
    assert experiment.model.norm.keywords["decay_steps"] == 16  # 0.8 * 20
    peak, warmup, total = config.optim.lr, 3, 203
    steps = np.array([0, 1, 3, 20, 100, 203, 999])
    done = np.clip((steps - warmup) / (total - warmup), 0, 1)
    cosine = peak * (0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2)
    expected = np.where(steps < warmup, peak * steps / warmup, cosine)
    found = jax.vmap(experiment.schedule)(steps)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_told_and_logged_once(tmp_path, capsys):
    """With the rate before, and what was recalibrated at the old end forgotten."""
    untrained_run(progressive_config(total_steps=20), tmp_path)
    (tmp_path / PROGRESS_FILE).write_bytes(b"of the end that was")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "lr": 0.25}\n')
    config = extended(progressive_config(total_steps=30), tmp_path)
    experiment = build_experiment(config)
    state = state_of(tmp_path, 0)
    for _ in range(2):
        log = report.MetricLog(tmp_path, 0)
        tell(experiment, tmp_path, state, log)
        log.close()
    said = capsys.readouterr().out
    assert said.count("extended from 20 to 30 steps") == 1
    assert "(0, 0.25 before)" in said and "stay those of 20 steps" in said
    records = report.read_metrics(tmp_path)
    assert records == [{"step": 0, "lr": 0.25}, {"step": 0, "extended_to": 30}]
    assert not (tmp_path / PROGRESS_FILE).exists()


def test_what_is_no_extension(tmp_path):
    config = progressive_config(total_steps=20)
    keep_config(config, tmp_path)
    with pytest.raises(UserError, match=r"total_steps is 20 there and 30 here"):
        keep_config(extended(progressive_config(total_steps=30), tmp_path), tmp_path)
    untrained_run(config, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"has 20 steps, 0 of them done; more extend"):
        extended(progressive_config(total_steps=19), tmp_path)
    for changes in ({"fractions_of": 7}, {"optim__lr": 0.5}):
        with pytest.raises(UserError, match="holds a run with another config"):
            wrong = extended(progressive_config(total_steps=30, **changes), tmp_path)
            keep_config(wrong, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert extended(config, tmp_path / "nothing") is config
