"""Preparation that is interrupted, room for it, and how the cache is cleared."""

import contextlib
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from normjax.cli.main import run
from normjax.core.errors import UserError
from normjax.core.locks import locked
from normjax.data import (
    ImageSet,
    augment,
    decode,
    eval_batches,
    open_images,
    open_text,
    prepared,
)
from normjax.data.__main__ import data_command
from normjax.data.checking import Seen
from tests.data.archives_test import files_of, png, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "in", files_of("train/", "test/", count=6))


def opened(folder, split="train", **given):
    cache = folder.parent / "cache"
    return open_images("image_folder", split, path=folder, data_dir=cache, **given)


def test_what_was_decoded_is_not_decoded_again(folder, monkeypatch, capfd):
    verify, seen = decode.verify, []

    def counted(encoded):
        seen.append(encoded)
        if len(seen) == 15:
            raise KeyboardInterrupt
        return verify(encoded)

    monkeypatch.setattr(decode, "verify", counted)
    with pytest.raises(KeyboardInterrupt):
        opened(folder)
    first, seen[:] = set(seen), []
    monkeypatch.setattr(decode, "verify", lambda e: seen.append(e) or verify(e))
    source = opened(folder)
    assert "were decoded by a process that was ended" in capfd.readouterr().err
    assert 0 < len(seen) < 24 and len(first & set(seen)) <= 24 - 12
    assert not list((folder.parent / "cache").rglob("*.seen"))
    monkeypatch.undo()
    shutil.rmtree(folder.parent / "cache")
    whole = opened(folder)
    assert whole.digest == source.digest
    every = np.arange(12)
    for one, other in zip(whole.gather(every)[0], source.gather(every)[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_file_of_a_killed_process_may_be_cut(folder):
    path = folder / "seen"
    seen = Seen(path)
    for name in ("a", "b\n\udce9"):
        seen.note(name, decode.verify(png(1)))
    seen.close(keep=True)
    path.write_bytes(path.read_bytes()[:-5])
    again = Seen(path)
    assert again.known == {"a": decode.verify(png(1))}
    again.note("c", decode.verify(png(2)))
    again.close(keep=True)
    last = Seen(path)
    last.close(keep=False)
    assert set(last.known) == {"a", "c"} and not path.exists()


def test_a_copy_has_to_fit(folder, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(UserError, match="a copy of 24 images needs") as error:
        opened(folder)
    assert "python -m normjax.data clear" in str(error.value)
    assert "in_place" in str(error.value) and "\n" not in str(error.value)
    assert not list((folder.parent / "cache").rglob("incomplete*"))
    assert len(opened(folder, in_place=True)) == 12


def test_gray_of_two_ranges_is_noticed_in_place(tmp_path):
    """White of 12 bits is dark gray of 16; files do not say which it is."""
    for i, top in enumerate((4000, 60_000)):
        path = tmp_path / "train" / "ab"[i] / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.linspace(0, top, 64).reshape(8, 8).astype("u2")).save(path)
    source = open_images("image_folder", "train", path=tmp_path, in_place=True)
    with pytest.raises(UserError, match=r"fill 16 bits, those of .* 12 bits") as error:
        source.gather(np.arange(2))
    assert "\n" not in str(error.value)


def test_gray_of_two_ranges_is_noticed_across_splits_and_workers(tmp_path):
    """Each of two workers sees one range alone: its batches hold no other image."""
    for i, (split, top) in enumerate(
        [("train", 4000), ("train", 60_000), ("test", 60_000)]
    ):
        path = tmp_path / split / "ab"[i % 2] / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.linspace(0, top, 64).reshape(8, 8).astype("u2")).save(path)
    images = ImageSet("image_folder", path=tmp_path, in_place=True, undecodable="skip")
    resize = augment.build({"image_size": 8}, train=False)
    train, batch = images.split("train"), {"batch_size": 1, "transform": resize}
    with (
        contextlib.closing(eval_batches(train, workers=2, **batch)) as batches,
        pytest.raises(UserError, match=r"fill 16 bits, those of .* 12 bits"),
    ):
        assert sorted(next(batches)) == ["image", "label", "mask"]
        next(batches)
    with pytest.raises(UserError, match=r"no image of .* split 'test' can be decoded"):
        images.split("test").gather(np.arange(1))


@pytest.fixture
def command(tmp_path, capfd):
    def call(*arguments, code=0):
        capfd.readouterr()
        argv = ["data", f"--data_dir={tmp_path / 'cache'}", *arguments]
        assert run(data_command, argv) == code
        out, err = capfd.readouterr()
        return err if code else out

    return call


def test_the_cache_is_shown_and_cleared(folder, command, tmp_path):
    opened(folder)
    (tmp_path / "a.txt").write_text("some words\n" * 100)
    spec = {"train_path": str(tmp_path / "a.txt")}
    text = lambda: open_text("text_file", "train", spec, data_dir=tmp_path / "cache")  # noqa: E731
    text()
    mine = tmp_path / "cache/cifar10"
    mine.mkdir()
    out = command()
    assert out.count("image_folder") == 1 and out.count("text_file") == 1
    assert "decoded" in out and "cifar10" not in out
    assert "0 sets removed" in command("--older_than=1", "clear")
    assert "1 sets removed" in command("--kind=text", "clear")
    assert "text_file" not in command() and "image_folder" in command()
    assert "2 sets removed" in command("clear")
    assert mine.is_dir()
    assert len(opened(folder)) == 12 and text().num_bytes > 900
    line = command("--kind=txt", code=2)
    assert "did you mean 'text'?" in line and len(line.splitlines()) == 1
    assert "unexpected argument" in command("clean", code=2)


def test_what_is_being_made_stays(folder, command, tmp_path):
    opened(folder)
    (lock,) = (tmp_path / "cache/image_folder").rglob("*.lock")
    with locked(lock, busy=print, lockless=print):  # as prepared.prepare does
        assert "is at work in" in command("--kind=image_folder", "clear", code=2)
    assert "1 sets removed" in command("--kind=image_folder", "clear")
