"""Runs that are killed: the command line, other processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from tests.train.loop_test import assert_each_metric_once, state_of

ROOT = Path(__file__).parent.parent.parent
STEPS = 60
ATTEMPTS, PAUSE = 4000, 0.05  # of polling for a file: at most 200 seconds
FLAGS = [
    "--config=configs/digits.py:norm=prepbn,mixer=softmax",
    "--config.batch_size=16",
    f"--config.total_steps={STEPS}",
    "--config.model.dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.log_every=1",
    "--config.eval_every=1000",
    "--config.checkpoint.every=10",
]


def start(workdir):
    return subprocess.Popen(
        [sys.executable, "train.py", f"--workdir={workdir}", *FLAGS],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Exit code and what was printed."""
    out, err = process.communicate(timeout=ATTEMPTS * PAUSE)
    return process.returncode, out + err


def signal_when(process, path, number):
    """Send `number` once `path` is there and the process still runs."""
    for _ in range(ATTEMPTS):
        if path.exists():
            break
        assert process.poll() is None, finish(process)
        time.sleep(PAUSE)
    process.send_signal(number)


def newest(workdir):
    return max(
        int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, text = finish(start(workdir))
    assert code == 0, text
    return workdir


def assert_same(workdir, undisturbed, steps=STEPS):
    chex.assert_trees_all_equal(state_of(workdir), state_of(undisturbed))
    assert_each_metric_once(workdir, steps)


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(undisturbed, tmp_path):
    process = start(tmp_path)
    signal_when(process, tmp_path / "checkpoints" / "20" / "commit_success.txt", 9)
    code, _ = finish(process)
    assert code == -signal.SIGKILL
    assert newest(tmp_path) < STEPS
    code, text = finish(start(tmp_path))
    assert code == 0, text
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_terminated_runs_save_and_say_so(undisturbed, tmp_path):
    process = start(tmp_path)
    signal_when(process, tmp_path / "checkpoints" / "10", signal.SIGTERM)
    code, text = finish(process)
    assert code == 75, text
    stopped = newest(tmp_path)
    assert f"stopped at step {stopped}; checkpoint saved" in text
    assert 10 <= stopped < STEPS
    code, text = finish(start(tmp_path))
    assert code == 0, text
    assert_same(tmp_path, undisturbed)


TERMINATED = """
import os, signal, sys
from normjax.train import phases, scoring
from normjax.cli.main import run, train_command

when, owner = sys.argv.pop(1), scoring
if when == "_compile":
    owner = phases
original = getattr(owner, when)

def terminated(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*args)

setattr(owner, when, terminated)
sys.exit(run(train_command, sys.argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "code"), [("_compile", -signal.SIGTERM), ("recalibrate", 75)]
)
def test_terminated_outside_the_steps(tmp_path, data_dir, when, code):
    """Before the first step there is nothing to save; after the last, it is saved."""
    script, workdir = tmp_path / "terminated.py", tmp_path / "run"
    script.write_text(TERMINATED)
    flags = [f"--workdir={workdir}", *FLAGS, "--config.recalibrate_batches=2"]
    process = subprocess.Popen(
        [sys.executable, script, when, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    found, text = finish(process)
    assert found == code, text
    saved = [
        path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    ]
    assert (len(saved) > 0) == (code == 75)
