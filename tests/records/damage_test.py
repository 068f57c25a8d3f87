"""Checkpoints with files missing, cut off, empty and with flipped bits; full disks."""

import asyncio
import contextlib
import json
import random
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import jax.numpy as jnp
import optax
import pytest

from normjax.core.errors import UserError
from normjax.records.checkpoint import Checkpoints, Damaged, RunFailed
from tests.train.tiny import Linear, toy_state

SHAPE, CLASSES = (16, 16, 1), 32  # the largest array takes a file of its own


def state_at(step):
    state = toy_state(Linear(CLASSES), optax.adam(1e-3), SHAPE, seed=step)
    return state.replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the checkpoints 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        checkpoints.save(state_at(step), {"x": float(step)})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def files(workdir, step=2):
    folder = workdir / "checkpoints" / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def data_files(workdir, step=2):
    """Those with the arrays; small ones lie in the manifests."""
    found = files(workdir, step)
    return [p for p in found if p.parent.name == "d" or p.name == "manifest.ocdbt"]


def largest(workdir, step=2):
    """The largest file of data."""
    return max(data_files(workdir, step), key=lambda path: path.stat().st_size)


def flip(path, seed=0):
    """Flip one bit."""
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def restored(workdir, **arguments):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore_newest(state_at(0), **arguments)
    finally:
        checkpoints.close()


def test_flipped_data_is_noticed(workdir, capsys):
    """Without checksums it is not: the file has none of its own."""
    flip(largest(workdir))
    chex.assert_trees_all_equal(restored(workdir), state_at(1))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert f"checkpoint 2 of {workdir} is damaged (the checksums of 1 arrays" in out
    assert "kept, but passed over for checkpoint 1" in out
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"1", "2"}


def test_what_is_left_behind_says_nothing(tmp_path, monkeypatch):
    """Coroutines that are never finished, and operations whose event loop is gone."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for _ in range(2):
        Checkpoints(tmp_path).close()

    async def read():
        try:
            await asyncio.sleep(0)
        except GeneratorExit as error:
            raise OSError("collected") from error

    class Other:
        def __del__(self):
            raise RuntimeError("Event loop is closed")

    abandoned, other = read(), Other()
    abandoned.send(None)
    del abandoned
    closed = RuntimeError("Event loop is closed")
    sys.unraisablehook(SimpleNamespace(object=None, exc_value=closed))
    assert not said
    del other
    assert len(said) == 1
    sys.unraisablehook(SimpleNamespace(object=None, exc_value=ValueError("other")))
    assert len(said) == 2


def test_a_run_goes_on_beside_the_damaged_one(workdir):
    folder = workdir / "checkpoints" / "2"
    before = {p.relative_to(folder): p.read_bytes() for p in files(workdir)}
    largest(workdir).unlink()
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore_newest(state_at(0), set_aside=True)
    assert checkpoints.latest() == int(state.step) == 1
    checkpoints.save(state_at(2))
    checkpoints.close()
    chex.assert_trees_all_equal(restored(workdir), state_at(2))
    aside = folder.with_name("2.damaged")
    after = {p.relative_to(aside): p.read_bytes() for p in files(workdir, aside.name)}
    assert len(after) == len(before) - 1 and after.items() <= before.items()


def test_none_is_left(workdir, capsys):
    cut(largest(workdir))
    shutil.rmtree(workdir / "checkpoints" / "1" / "default")
    with pytest.raises(UserError) as caught:
        restored(workdir, set_aside=True)
    message = str(caught.value)
    assert "\n" not in message and "there is no other" in message
    assert message.index("checkpoint 2 of") < message.index("checkpoint 1 of")
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"1", "2"}


def test_one_that_is_asked_for_by_its_step(workdir):
    flip(largest(workdir))
    checkpoints = Checkpoints(workdir)
    with pytest.raises(Damaged, match="checkpoint 2 of"):
        checkpoints.restore(2, state_at(0))
    fields = checkpoints.read_newest()
    checkpoints.close()
    chex.assert_trees_all_equal(fields["params"], state_at(1).params)


def test_of_before_there_were_checksums(workdir, capsys):
    path = workdir / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    assert metadata["custom_metadata"]["checksums"]
    path.write_text(json.dumps({**metadata, "custom_metadata": {}}))
    chex.assert_trees_all_equal(restored(workdir), state_at(2))
    assert "checkpoint 2" in (out := capsys.readouterr().out)
    assert "carries no checksums" in out and out.count("\n") == 1


def test_scores_that_cannot_be_read(workdir):
    cut(workdir / "checkpoints" / "2" / "metrics" / "metrics")
    checkpoints = Checkpoints(workdir, rank=lambda scores: scores["x"])
    assert (checkpoints.best(), checkpoints.latest()) == (1, 2)
    checkpoints.close()
    chex.assert_trees_all_equal(restored(workdir), state_at(2))


@pytest.mark.slow
def test_every_file_in_every_way(saved, tmp_path_factory, capfd):
    """Whatever is restored is one of the two states that were written."""
    ways = {
        "missing": Path.unlink,
        "cut off": cut,
        "empty": lambda p: p.write_bytes(b""),
        "flip": flip,
    }
    states, counts = {n: state_at(n) for n in (1, 2)}, {1: 0, 2: 0}
    for index in range(len(files(saved))):
        for name, damage in ways.items():
            workdir = tmp_path_factory.mktemp("damaged")
            shutil.copytree(saved, workdir, dirs_exist_ok=True)
            path = files(workdir)[index]
            damage(path)
            state = restored(workdir, set_aside=True)
            step = int(state.step)
            chex.assert_trees_all_equal(state, states[step])
            if path.name == largest(saved).name:
                assert step == 1, name
            counts[step] += 1
            shutil.rmtree(workdir)
    with capfd.disabled():
        print(f"\ndamaged files: {counts[1]} passed over, {counts[2]} of no matter")


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 20 kB: what a full disk is, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_is_noticed_and_leaves_the_last(workdir):
    checkpoints = Checkpoints(workdir)
    checkpoints.check()
    with pytest.raises(RunFailed) as caught, full_disk():
        checkpoints.save(state_at(3))
        checkpoints.close()
    message = str(caught.value)
    assert "a checkpoint could not be written" in message and "\n" not in message
    assert message.endswith("newest complete one: 2")
    chex.assert_trees_all_equal(restored(workdir), state_at(2))
