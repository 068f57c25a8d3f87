"""One run, killed at random moments over and over, ends as an undisturbed one does."""

import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.train.kill_test import ROOT, assert_same, finish, newest

pytestmark = pytest.mark.slow

EVERY = 20
PATIENCE = 200.0  # seconds that a life may take to come to its moment
FLAGS = (
    "--config=configs/digits.py:norm=prepbn,mixer=softmax",
    "--config.batch_size=8",
    "--config.model.dim=8",
    "--config.model.depth=1",
    "--config.model.num_heads=1",
    "--config.log_every=1",
    "--config.eval_every=100000",
    f"--config.checkpoint.every={EVERY}",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A process that trains in a workdir; compiled code is kept over its lives."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }

    def process(workdir, steps):
        return subprocess.Popen(
            [
                sys.executable,
                "train.py",
                f"--workdir={workdir}",
                f"--config.total_steps={steps}",
                *FLAGS,
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return process


def writing(workdir, since=0):
    """Whether a checkpoint was being written after the time `since` (ns)."""
    with contextlib.suppress(OSError):
        tmp = (p for p in (workdir / "checkpoints").iterdir() if "tmp" in p.name)
        return any(path.stat().st_mtime_ns > since for path in tmp)
    return False


def moment(kind, workdir, rng):
    """The conditions to wait for, one after the other, before a kill of this kind."""
    began, until = time.time_ns(), time.monotonic() + rng.uniform(0, 5)
    if kind == "start":  # from the first import to the first steps
        return [lambda: time.monotonic() > until]
    target = newest_or(workdir, 0) + EVERY * rng.randint(1, 2)
    written = [lambda: newest_or(workdir, 0) >= target]
    return written if kind == "step" else [*written, lambda: writing(workdir, began)]


def newest_or(workdir, default):
    with contextlib.suppress(OSError, ValueError):
        return newest(workdir)
    return default


def kill_at(process, conditions, delay):
    """Whether the process still ran when its moment had come."""
    end = time.monotonic() + PATIENCE
    for condition in conditions:
        while not condition():
            assert time.monotonic() < end
            if process.poll() is not None:
                return False
            time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("times", "steps"), [(6, 400), pytest.param(21, 1200, marks=pytest.mark.long)]
)
def test_killed_at_random_moments(start, tmp_path, data_dir, capfd, times, steps):
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    code, text = finish(start(undisturbed, steps))
    assert code == 0, text
    rng, kills = random.Random(0), collections.Counter()
    while kills.total() < times:
        kind = rng.choice(["start", "step", "writing", "writing"])
        delay = rng.uniform(0, {"start": 0, "step": 0.1, "writing": 0.02}[kind])
        with start(workdir, steps) as process:
            began = time.time_ns()
            killed = kill_at(process, moment(kind, workdir, rng), delay)
        assert killed, f"the run was over after {kills}"
        half = "a half-written" if writing(workdir, began) else "no half-written"
        kills[f"{half} checkpoint"] += 1
    code, text = finish(start(workdir, steps))
    assert code == 0, text
    assert_same(workdir, undisturbed, steps)
    with capfd.disabled():
        print(f"\nsurvived {kills.total()} kills: {dict(kills)}")
