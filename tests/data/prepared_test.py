"""Prepared data: one process makes it, others wait, a killed one leaves nothing."""

import os
import signal
import subprocess
import sys

import pytest

from normjax.core import locks
from normjax.core.errors import UserError
from normjax.data.prepared import prepare

PREPARE = """
import pathlib, sys
from normjax.data.prepared import prepare

def make(folder):
    (folder / "half").write_text("")
    print("making", flush=True)
    sys.stdin.readline()
    (folder / "whole").write_text(sys.argv[2])

prepare(pathlib.Path(sys.argv[1]), make)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def start(name):
        command = [sys.executable, "-c", PREPARE, tmp_path / "cache/set", name]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_the_second_process_waits_and_takes_what_the_first_has_made(tmp_path, start):
    first = start("first")
    assert first.stdout.readline() == "making\n"
    second = start("second")
    line = second.stderr.readline()
    assert line.startswith(f"waiting for process {first.pid} on ") and "set" in line
    assert first.communicate("\n", timeout=60) == ("", "")
    assert second.communicate(timeout=60) == ("", "")
    assert (tmp_path / "cache/set/whole").read_text() == "first"
    assert left(tmp_path) == [".set.lock", "set"]


def test_what_a_killed_process_left_is_removed_and_made_anew(tmp_path, start):
    first = start("first")
    assert first.stdout.readline() == "making\n"
    second = start("second")
    assert "waiting" in second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    assert second.stdout.readline() == "making\n"
    assert second.communicate("\n", timeout=60) == ("", "")
    assert (tmp_path / "cache/set/whole").read_text() == "second"
    assert left(tmp_path) == [".set.lock", "set"]


def test_without_locks_the_first_result_stays(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    target = tmp_path / "set"

    def slower(folder):
        prepare(target, lambda made: (made / "faster").touch())
        (folder / "slower").touch()

    prepare(target, slower)
    assert os.listdir(target) == ["faster"]
    assert sorted(os.listdir(tmp_path)) == [".set.lock", "set"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError()])
def test_what_fails_leaves_nothing(tmp_path, error):
    def make(folder):
        (folder / "half").touch()
        raise error

    expected = UserError if isinstance(error, OSError) else KeyError
    with pytest.raises(expected) as caught:
        prepare(tmp_path / "set", make)
    assert expected is KeyError or "No space left on device" in str(caught.value)
    assert os.listdir(tmp_path) == [".set.lock"]
