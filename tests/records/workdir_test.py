"""One run at a time in a workdir, and what it needs there."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from normjax.cli import main as cli
from normjax.core import locks
from normjax.core.errors import UserError
from normjax.records import workdir
from normjax.train import loop
from tests.train.tiny import tiny_config

HOLD = """
import sys, time
from normjax.records.workdir import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    with workdir.held(tmp_path):
        with pytest.raises(UserError) as caught, workdir.held(tmp_path):
            pass
        message = str(caught.value)
        assert f"in use by process {os.getpid()} on " in message
        assert " since 2" in message and "\n" not in message
    with workdir.held(tmp_path):
        pass


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        holder = json.loads((tmp_path / workdir.LOCK_FILE).read_text())
        assert holder["pid"] == other.pid
        with pytest.raises(UserError, match=f"process {other.pid} on "):
            loop.train(tiny_config(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [workdir.LOCK_FILE]
        other.send_signal(signal.SIGKILL)
    with workdir.held(tmp_path):
        pass


def test_train_holds_it_while_it_works(tmp_path, monkeypatch):
    seen, config = [], tiny_config("norm=layer_norm,mixer=softmax")

    def another(self):
        with pytest.raises(UserError, match="is in use by process"):
            loop.train(config, tmp_path)
        seen.append(self.step)

    monkeypatch.setattr(loop.Run, "run", another)
    assert loop.train(config, tmp_path) is None
    assert seen == [0]
    assert (tmp_path / workdir.LOCK_FILE).read_text() == ""


def test_a_file_system_without_locks_is_no_reason_to_stop(
    tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with workdir.held(tmp_path):
        pass
    assert "has no locks (Operation not supported)" in capsys.readouterr().out


CONFIG = "--config=configs/digits.py:norm=layer_norm,mixer=softmax"
STATE = {"w": jax.ShapeDtypeStruct((1000, 1000), np.float32)}  # 4 MB


def free(monkeypatch, count):
    usage = shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(workdir.shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize(
    ("there", "megabytes", "enough"), [(0, 16, True), (0, 15, False), (3, 4, True)]
)
def test_room_for_all_checkpoints(tmp_path, monkeypatch, there, megabytes, enough):
    for step in range(there):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    free(monkeypatch, megabytes * 10**6)
    message = "has 15.0 MB free and needs 16.0 MB for 4 more checkpoints of 4.0 MB"
    with contextlib.nullcontext() if enough else pytest.raises(UserError) as caught:
        workdir.check_room(tmp_path, STATE, keep=3)
    assert enough or message in str(caught.value)


def test_no_room_is_said_before_training(tmp_path, monkeypatch, capsys):
    free(monkeypatch, 1000)
    command = ["train.py", CONFIG, f"--workdir={tmp_path}"]
    assert cli.run(cli.train_command, command) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: workdir {tmp_path} has 0.0 MB free")
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [workdir.LOCK_FILE]


def test_a_folder_that_cannot_be_written(tmp_path):
    """A file stands where the folder, or one above it, should be; root obeys too."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file.*(File exists|Not a directory)"):
            loop.train(tiny_config("norm=layer_norm,mixer=softmax"), path)
