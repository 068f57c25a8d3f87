"""Runs on two processes of two devices: the command line, real signals, one workdir."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from normjax.train.distributed import SILENCE
from tests.train.kill_test import ROOT, finish, newest, signal_when
from tests.train.loop_test import assert_each_metric_once, state_of

pytestmark = pytest.mark.slow

STEPS = 40
FLAGS = [
    "--config=configs/digits.py:norm=prepbn,mixer=softmax",
    "--config.batch_size=16",
    f"--config.total_steps={STEPS}",
    "--config.model.dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.recalibrate_batches=2",
    "--config.log_every=1",
    "--config.eval_every=1000",
    "--config.checkpoint.every=10",
]
QUICK = "--xla_backend_optimization_level=0"


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(workdir, processes, *flags, command="train.py", devices=2):
    """The same command on every process of a run."""
    port, started = free_port(), []
    for index in range(processes):
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        started.append(
            subprocess.Popen(
                [sys.executable, command, f"--workdir={workdir}", *flags],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish_all(started, code=0):
    """What every process printed; all end with `code`."""
    ends = [finish(process) for process in started]
    assert [end[0] for end in ends] == [code] * len(ends), ends
    return [text for _, text in ends]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """The workdir of one process with all four devices."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish_all(start(workdir, 1, *FLAGS, devices=4))
    return workdir


def assert_same(workdir, undisturbed):
    ours, theirs = state_of(workdir), state_of(undisturbed)
    chex.assert_trees_all_close(ours.params, theirs.params, atol=1e-4)
    chex.assert_trees_all_close(ours.model_state, theirs.model_state, atol=1e-4)
    assert_each_metric_once(workdir, STEPS)


def test_two_processes_equal_one(undisturbed, tmp_path):
    first, other = finish_all(start(tmp_path, 2, *FLAGS))
    assert_same(tmp_path, undisturbed)
    assert "4 x cpu" in first and "top-1" in first
    assert "top-1" not in other  # one of them speaks for all
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    evaluated = finish_all(start(tmp_path, 2, "--fold", command="eval.py"))
    assert "latency" in evaluated[0] and "latency" not in evaluated[1]


@pytest.mark.parametrize(
    ("before", "after", "mesh"),
    [(2, 1, "fsdp=2"), (1, 2, "tensor=2")],
)
def test_stopped_and_resumed_on_other_processes(
    undisturbed, tmp_path, before, after, mesh
):
    """A signal to the last process stops all; the mesh changes as well."""
    started = start(tmp_path, before, *FLAGS, f"--config.mesh.{mesh}")
    signal_when(started[-1], tmp_path / "checkpoints" / "10", signal.SIGTERM)
    finish_all(started, code=75)
    assert 10 <= newest(tmp_path) < STEPS
    finish_all(start(tmp_path, after, *FLAGS))
    assert_same(tmp_path, undisturbed)


def test_a_process_without_its_share_says_so(tmp_path):
    texts = finish_all(start(tmp_path, 2, *FLAGS, "--config.batch_size=18"), code=2)
    for text in texts:
        assert "config.batch_size 18 does not divide by 4 devices" in text
    assert not list(Path(tmp_path).iterdir())


FAILING = """
import os, sys
from normjax.train import loop
from normjax.train.cli import run, train_command

record = loop.Run._record

def failing(self, step, *args):
    if step == 35 and os.environ["JAX_PROCESS_ID"] == "0":
        raise ValueError("broken")
    return record(self, step, *args)

loop.Run._record = failing
sys.exit(run(train_command, sys.argv))
"""


@pytest.mark.parametrize("way", ["killed", "fails"])
def test_when_one_process_goes_the_others_end_and_a_restart_goes_on(tmp_path, way):
    """Within the time that a process may be silent, not at the end of days."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    workdir, flags = tmp_path / "run", [*FLAGS, "--config.total_steps=120"]
    command = "train.py" if way == "killed" else str(script)
    first, other = started = start(workdir, 2, *flags, command=command)
    if way == "killed":
        signal_when(other, workdir / "checkpoints" / "10", signal.SIGKILL)
    else:
        first, other = other, first
    code, text = finish(other)
    begin = time.monotonic()
    assert code == (-signal.SIGKILL if way == "killed" else 1), text
    assert "broken" in text or way == "killed"
    code, text = finish(first)
    assert time.monotonic() - begin < SILENCE + 20  # slack of a busy machine
    assert code not in (0, 2, 75), text
    assert {process.poll() for process in started}.isdisjoint({None})
    assert 10 <= newest(workdir) < 120
    finish_all(start(workdir, 2, *flags))
    assert_each_metric_once(workdir, 120)
