"""Faults of the data under a run: what the commands say and leave behind."""

import json
import multiprocessing
import os
import shutil
import signal
from unittest import mock

import pytest

from normjax.cli.main import run, train_command
from normjax.data import sources
from normjax.train.loop import Run
from tests.data.faults_test import folder, png

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.usefixtures("compiled_once")
SMALL = (
    *("--config=configs/digits.py:runlocal,norm=layer_norm,mixer=softmax",),
    *(f"--config.model.{x}" for x in ("dim=16", "depth=1", "num_heads=2")),
)


@pytest.fixture
def train(tmp_path, capfd, monkeypatch, request):
    """Run train.py in process; (exit code, lines on stderr without preparations)."""
    monkeypatch.chdir(request.config.rootpath)

    def call(*arguments, workdir="run"):
        capfd.readouterr()
        argv = ["train.py", f"--workdir={tmp_path / workdir}", *arguments]
        code = run(train_command, argv)
        lines = capfd.readouterr().err.splitlines()
        return code, [line for line in lines if not line.startswith("prepar")]

    return call


@pytest.fixture
def untrained():
    """Runs end before their first step."""
    with (
        mock.patch("normjax.train.loop.trace_phase"),
        mock.patch("normjax.train.loop.Run"),
    ):
        yield


def assert_refused(result, *fragments):
    code, lines = result
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.mark.usefixtures("untrained")
def test_changed_images_under_a_resumed_run(train, folder, tmp_path):
    image, kept = folder / "train/cat/3.png", tmp_path / "kept.png"
    shutil.copy(image, kept)

    def resume(*more):
        data = (f"path={folder}", "name=image_folder", f"data_dir={tmp_path}")
        mean = "--config.data.mean=(0.5,)"
        return train(*SMALL, *(f"--config.data.{x}" for x in data), mean, *more)

    assert resume() == (0, [])
    data = tmp_path / "run/data.json"
    before = data.read_bytes()
    assert {k: v["examples"] for k, v in json.loads(before).items()} == {
        "train": 8,
        "test": 4,
    }
    os.utime(image)
    assert resume() == (0, [])
    image.unlink()
    said = ("split 'train' (8 examples then, 7 now)", "choose another --workdir")
    assert_refused(resume(), "the data have changed", *said)
    image.write_bytes(png(98))
    assert_refused(resume(), "as many examples, other names, labels or content")
    assert data.read_bytes() == before
    shutil.copy(kept, image)
    assert resume() == (0, [])
    data.write_text("{")
    assert_refused(resume(), "data.json is damaged")


@pytest.mark.usefixtures("untrained")
def test_changed_text_under_a_resumed_run(train, tmp_path):
    words = tmp_path / "words"
    config = f"--config=configs/lm_text.py:runlocal,path={words}"

    def resume(text):
        words.write_bytes(text)
        return train(config, f"--config.data.data_dir={tmp_path}")

    text = b"To be, or not to be.\n" * 400
    assert resume(text) == resume(text) == (0, [])
    assert_refused(resume(text.replace(b"To", b"to")), "split 'train'", "content")
    assert_refused(resume(text + b"That is the question.\n"), "examples")
    assert resume(text) == (0, [])


@pytest.mark.usefixtures("untrained")
def test_a_split_that_is_read_at_the_end_is_looked_for_at_the_start(train):
    result = train(*SMALL, "--config.data.test_split=tset")
    assert_refused(result, "split of 'digits': 'tset'", "did you mean 'test'")


@pytest.mark.slow
def test_a_worker_dies_in_training(train, tmp_path):
    record, killed = Run._record, []

    def kill(self, step, *arguments):
        record(self, step, *arguments)
        children = multiprocessing.active_children()
        if step == 12 and children and not killed:
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)

    with mock.patch.object(Run, "_record", kill):
        steps = "--config.total_steps=100000"
        code, lines = train(*SMALL, "--config.data.workers=1", steps)
    assert killed and code == 1 and len(lines) == 1, lines
    start = "error: loading data in a worker process of 1 failed: "
    assert lines[0].startswith(start) and "exit code -9" in lines[0]
    assert (tmp_path / "run/checkpoints/10").is_dir()


@pytest.mark.slow
def test_what_stood_in_is_counted(train, tmp_path, monkeypatch):
    read = sources.ImageSource._read

    def damaged(self, indices):
        pairs = zip(indices, read(self, indices), strict=True)
        return [(data[: 40 if i in (3, 700) else None], y) for i, (data, y) in pairs]

    monkeypatch.setattr(sources.ImageSource, "_read", damaged)
    fields = ("data.undecodable=skip", f"data.data_dir={tmp_path}", "total_steps=90")
    code, lines = train(*SMALL, *(f"--config.{field}" for field in fields))
    assert code == 0
    assert sum("stands in" in line for line in lines) == 3, lines  # one of them in test
    log = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    counts = [x["undecodable"] for x in map(json.loads, log) if "undecodable" in x]
    assert counts == [2]  # 90 batches of 16 are one epoch
