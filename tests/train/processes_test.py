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

from normjax.core.paths import workdir_path
from normjax.devices.processes import SILENCE
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


def start(workdir, processes, *flags, command="train.py", devices=2, folders=()):
    """The same command on every process of a run.

    Args:
      folders: workdirs of the processes, where they have not one.
    """
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
                [
                    *(sys.executable, command),
                    f"--workdir={folders[index] if folders else workdir}",
                    *flags,
                ],
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


IN_BUCKET = """
import os, sys
sys.path.insert(0, os.getcwd())
from normjax.cli.main import run, train_command
from tests import cloud_storage

cloud_storage.install()
sys.exit(run(train_command, sys.argv))
"""


def test_two_processes_in_a_bucket(bucket, undisturbed, tmp_path):
    script = tmp_path / "in_bucket.py"
    script.write_text(IN_BUCKET)
    first, other = finish_all(start("gs://bucket/run", 2, *FLAGS, command=str(script)))
    assert_same(workdir_path("gs://bucket/run"), undisturbed)
    assert first.count("buckets have no locks") == 1 and "locks" not in other


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
from normjax.core.errors import UserError
from normjax.records import manager
from normjax.train import loop
from normjax.cli.main import run, train_command

way, process = os.environ["WAY"].split()
build, record = loop.build_experiment, loop.Run._record
find = manager.Names.find_all

def bad_data(config):
    raise UserError("cannot read 'cat/1.jpg'")

def failing(self, step, *args):
    if step == 15 and way == "decode":
        raise UserError("cannot decode 'cat/2.jpg'")
    if step == 35 and way == "error":
        raise ValueError("broken")
    return record(self, step, *args)

def blind(self, path):
    return (found for found in find(self, path) if found.step < 40)

if os.environ["JAX_PROCESS_ID"] == process:
    loop.Run._record = failing
    if way == "data":
        loop.build_experiment = bad_data
    if way == "blind":
        manager.Names.find_all = blind
sys.exit(run(train_command, sys.argv, several=True))
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A function that starts a run of which one process fails in some way."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)

    def start_failing(workdir, way, process):
        monkeypatch.setenv("WAY", f"{way} {process}")
        return start(workdir, 2, *FLAGS, command=str(script))

    return start_failing


@pytest.mark.parametrize(
    ("way", "process", "code", "line"),
    [
        ("data", 1, 2, "cannot read 'cat/1.jpg'"),
        ("data", 0, 2, "cannot read 'cat/1.jpg'"),
        ("decode", 1, 2, "cannot decode 'cat/2.jpg'"),
        ("error", 0, 1, "ValueError: broken"),
    ],
)
def test_a_process_that_fails_ends_all_with_its_code_and_line(
    failing, tmp_path, way, process, code, line
):
    """Before the loop, and in it."""
    texts = finish_all(failing(tmp_path / "run", way, process), code)
    assert all(line in text for text in texts), texts
    assert f"error: process {process} of 2: " in texts[1 - process]
    assert ("Traceback" in "".join(texts)) == (way == "error")
    if way == "error":
        finish_all(start(tmp_path / "run", 2, *FLAGS))
        assert_each_metric_once(tmp_path / "run", STEPS)


SAVING = """
import os, resource, signal, sys
import numpy as np
from normjax.cli.main import run

def state(step, jax):
    from normjax.devices.mesh import device_mesh, replicated, split_batch
    from normjax.train.state import TrainState

    mesh, counts = device_mesh(jax.devices()), (np.int32(step), np.zeros(2, np.uint32))
    mine = np.random.default_rng(step).normal(size=40_000).astype(np.float32)
    w = jax.make_array_from_process_local_data(split_batch(mesh), mine)
    step, rng = jax.jit(lambda: counts, out_shardings=replicated(mesh))()
    return TrainState(
        step=step, params={"w": w}, model_state={}, opt_state={}, ema=None, rng=rng
    )

def save(argv):
    import jax
    from normjax.records.checkpoint import Checkpoints
    from normjax.devices.processes import initialize

    initialize()
    checkpoints = Checkpoints(argv[1].partition("=")[2])
    checkpoints.save(state(1, jax))
    checkpoints.close()
    checkpoints = Checkpoints(argv[1].partition("=")[2])
    if os.environ["JAX_PROCESS_ID"] == os.environ["FULL"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    checkpoints.save(state(2, jax))
    checkpoints.close()
    return 0

sys.exit(run(save, sys.argv))
"""


@pytest.mark.parametrize("process", [0, 1])
def test_a_disk_that_is_full_for_one_process_ends_all(tmp_path, monkeypatch, process):
    """Its write fails in the background, while those of the others wait for it."""
    script, workdir = tmp_path / "saving.py", tmp_path / "run"
    script.write_text(SAVING)
    monkeypatch.setenv("FULL", str(process))
    texts = finish_all(start(workdir, 2, command=str(script)), code=1)
    for text in texts:
        assert "a checkpoint could not be written" in text
        assert text.rstrip().endswith("newest complete one: 1") and "Trace" not in text
    assert f"error: process {process} of 2: workdir" in texts[1 - process]
    assert newest(workdir) == 1


def test_a_checkpoint_that_one_process_does_not_see(failing, tmp_path):
    workdir = tmp_path / "run"
    finish_all(start(workdir, 2, *FLAGS))
    for text in finish_all(failing(workdir, "blind", 1), code=2):
        assert "process 1 sees the checkpoints [30] in workdir" in text
    assert newest(workdir) == STEPS


def test_workdirs_that_are_not_shared(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for text in finish_all(start(None, 2, *FLAGS, folders=folders), code=2):
        assert " of process 1 (" in text and " is not that of process 0 (" in text
    assert not list(tmp_path.glob("*/checkpoints"))


def test_when_one_process_is_killed_the_others_end_and_a_restart_goes_on(tmp_path):
    """Within the time that a process may be silent, not at the end of days."""
    workdir, flags = tmp_path / "run", [*FLAGS, "--config.total_steps=120"]
    first, other = started = start(workdir, 2, *flags)
    signal_when(other, workdir / "checkpoints" / "10", signal.SIGKILL)
    code, text = finish(other)
    begin = time.monotonic()
    assert code == -signal.SIGKILL, text
    code, text = finish(first)
    assert time.monotonic() - begin < SILENCE + 20  # slack of a busy machine
    assert code not in (0, 2, 75), text
    assert {process.poll() for process in started}.isdisjoint({None})
    assert 10 <= newest(workdir) < 120
    finish_all(start(workdir, 2, *flags))
    assert_each_metric_once(workdir, 120)
