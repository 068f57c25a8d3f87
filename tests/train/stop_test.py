"""Signals during what takes long besides the steps: stopped, saved, gone on with."""

import json
import os
import shutil
import signal

import chex
import pytest

from normjax.devices.votes import Votes
from normjax.records.checkpoint import Checkpoints
from normjax.train import loop
from tests.train.loop_test import assert_each_metric_once, state_of, steps_kept
from tests.train.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("compiled_once")


SLOW = pytest.mark.slow


def config_of():
    """Evaluations by 23 batches at 3, twice at 6 and of the test, and 5 in between."""
    return tiny_config(recalibrate_batches=5, data__test_split="test")


def signal_in(monkeypatch, at):
    """SIGTERM to this process at the `at`-th batch of what is no training step."""
    watch, seen = Votes.watch, []

    def watch_and_signal(self, batches, interrupt):
        for batch in watch(self, batches, interrupt):
            seen.append(batch)
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Votes, "watch", watch_and_signal)


def records(workdir):
    """What the log says, without times, each step in the order of its names."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = {}
    for record in map(json.loads, lines):
        record.pop("images_per_second", None)
        record.pop("input_wait", None)
        found.setdefault(record["step"], {}).update(record)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, compiled_once, data_dir):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, loop.train(config_of(), workdir)


@pytest.mark.parametrize(
    ("at", "step", "saved"),
    [
        pytest.param(4, 3, 0, id="evaluation", marks=SLOW),
        pytest.param(23 + 4, 6, 0, id="before recalibration", marks=SLOW),
        pytest.param(46 + 3, 6, 1, id="recalibration", marks=SLOW),
        pytest.param(46 + 5 + 4, 6, 0, id="last evaluation", marks=SLOW),
        pytest.param(46 + 5 + 23 + 2, 6, 0, id="test split", marks=SLOW),
    ],
)
def test_stopped_and_gone_on(undisturbed, tmp_path, monkeypatch, at, step, saved):
    """The end is that of a run that nothing has disturbed, bit for bit."""
    with monkeypatch.context() as patch:
        signal_in(patch, at)
        assert loop.train(config_of(), tmp_path) is None
    assert max(steps_kept(tmp_path)) == step
    assert (tmp_path / "recalibration.npz").exists() == saved
    assert loop.train(config_of(), tmp_path) == undisturbed[1]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))
    assert_each_metric_once(tmp_path)
    assert records(tmp_path) == records(undisturbed[0])
    assert steps_kept(tmp_path) == [3, 6]
    checkpoints = [Checkpoints(path) for path in (tmp_path, undisturbed[0])]
    assert all(c.is_scored(s) for c in checkpoints for s in (3, 6))
    for each in checkpoints:
        each.close()
    assert not (tmp_path / "recalibration.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True])
def test_killed_while_the_last_checkpoint_was_replaced(undisturbed, tmp_path, written):
    """Before the new one was complete, and before the old one was removed."""
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    place = tmp_path / "checkpoints" / "6"
    aside = place.with_name("6.replaced")
    if written:
        shutil.copytree(place, aside)
    else:
        place.rename(aside)
    assert loop.train(config_of(), tmp_path) == undisturbed[1]
    assert steps_kept(tmp_path) == [3, 6]
    chex.assert_trees_all_equal(state_of(tmp_path), state_of(undisturbed[0]))
