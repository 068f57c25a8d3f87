"""Data sets that are damaged, change, or whose readers die."""

import io
import itertools
import multiprocessing
import os
import shutil
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image

from normjax.core.errors import LoadingFailed, UserError
from normjax.data import STOOD_IN, eval_batches, open_images, open_text, train_batches


def png(seed, size=(6, 5)):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images for training, and two for testing."""
    for i, name in enumerate(
        f"{split}/{label}/{number}.png"
        for split, count in (("train", 4), ("test", 2))
        for label in ("cat", "dog")
        for number in range(count)
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return tmp_path / "in"


def pack(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def open_folder(path, split="train", **options):
    data_dir = path.parent / "prepared"
    return open_images("image_folder", split, path=path, data_dir=data_dir, **options)


def refused(open_it):
    with pytest.raises(UserError) as error:
        open_it()
    assert "\n" not in str(error.value)
    return str(error.value)


def names(source):
    return [source.name_of(i).split("(")[1][:-1] for i in range(len(source))]


@pytest.mark.parametrize("zipped", [False, True])
def test_undecodable_files_are_left_out_if_asked_for(folder, capfd, zipped):
    bad = folder / "train/dog/1.png"
    bad.write_bytes(bad.read_bytes()[:-30])
    path = pack(folder, folder.parent / "in.zip") if zipped else folder
    if zipped:  # one more, whose checksum is wrong
        content, data = path.read_bytes(), (folder / "train/cat/2.png").read_bytes()
        path.write_bytes(content.replace(data, data[:-1] + b"!"))
    message = refused(lambda: open_folder(path))
    assert "train/" in message and "config.data.undecodable=skip" in message
    capfd.readouterr()
    source = open_folder(path, undecodable="skip")
    left_out = {"train/dog/1.png"} | ({"train/cat/2.png"} if zipped else set())
    assert source.left_out == len(left_out) == 8 - len(source)
    assert not left_out & set(names(source))
    lines = [x for x in capfd.readouterr().err.splitlines() if "left out" in x]
    assert [sum(name in x for x in lines) for name in left_out] == [1] * len(left_out)
    assert open_folder(path, "test", undecodable="skip").left_out == 0
    refused(lambda: open_folder(path))  # what was made for "skip" is not taken
    message = refused(lambda: open_folder(path, undecodable="skp"))
    assert "unknown data.undecodable 'skp'; did you mean 'skip'" in message


def test_a_sound_folder_is_prepared_once_for_both(folder):
    open_folder(folder)
    assert open_folder(folder, undecodable="skip").left_out == 0
    assert len(list((folder.parent / "prepared").rglob("dataset_info.json"))) == 1


def test_a_folder_without_a_decodable_image(folder):
    for file in (folder / "test").rglob("*.png"):
        file.write_bytes(b"no image")
    message = refused(lambda: open_folder(folder, undecodable="skip"))
    assert "no image of split 'test'" in message and "can be read" in message


def test_a_truncated_zip(folder):
    path = pack(folder, folder.parent / "in.zip")
    path.write_bytes(path.read_bytes()[:-40])
    assert "is no readable zip" in refused(lambda: open_folder(path))


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """open() of the scanned digits, of which examples 3, 4 and 359 are damaged."""
    from normjax.data import image_sets, sources

    class Damaged(sources.ImageSource):
        def _read(self, indices):
            bad = {3, 4, self.num_examples - 1}
            pairs = zip(indices, super()._read(indices), strict=True)
            return [(d[:40] if int(i) in bad else d, y) for i, (d, y) in pairs]

    monkeypatch.setattr(image_sets, "ImageSource", Damaged)
    return lambda policy: open_images(
        "digits", "test", data_dir=tmp_path, undecodable=policy
    )


@pytest.mark.parametrize("kept", [False, True])
def test_the_next_decodable_example_stands_in(digits, tmp_path, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr("normjax.data.sources.DECODED_BYTES", 0)
    source = digits("skip")
    monkeypatch.undo()
    sound = open_images("digits", "test", data_dir=tmp_path)
    stands = {3: 5, 4: 5, 359: 0}
    for index in range(360):
        image, label = source[index]
        expected = sound[stands.get(index, index)]
        np.testing.assert_array_equal(image, expected[0])
        assert label == expected[1]
    assert source.stand_ins == stands

    def batches(start):
        made = train_batches(source, batch_size=90, seed=7, start_step=start)
        taken = list(itertools.islice(made, 8 - start))
        made.close()
        return taken

    whole = batches(0)  # two epochs
    numbers = np.concatenate([batch[STOOD_IN] for batch in whole])
    assert sorted(numbers[numbers >= 0]) == [3, 3, 4, 4, 359, 359]
    for first, second in zip(whole[3:], batches(3), strict=True):
        assert all((first[name] == second[name]).all() for name in first)
    evaluated = list(eval_batches(source, batch_size=90))
    masks = np.concatenate([batch["mask"] for batch in evaluated])
    assert np.flatnonzero(~masks).tolist() == [3, 4, 359]
    assert STOOD_IN not in evaluated[0]


def test_undecodable_examples_stop_by_default(digits, monkeypatch):
    message = refused(lambda: digits("stop"))
    assert "cannot decode example 3 of 'digits' split 'test'" in message
    assert "config.data.undecodable=skip" in message
    from normjax.data import sources

    nothing = lambda self, indices: [(b"", 0)] * len(indices)  # noqa: E731
    monkeypatch.setattr(sources.ImageSource, "_read", nothing)
    message = refused(lambda: digits("skip"))
    assert "no image of 'digits' split 'test' can be decoded" in message


def test_digests_tell_content_and_not_place_or_time(folder):
    digest = open_folder(folder).digest
    assert open_folder(folder, "test").digest == digest
    for file in folder.rglob("*.png"):
        os.utime(file, ns=(10**18, 10**18))
    assert open_folder(folder).digest == digest
    copy = shutil.copytree(folder, folder.parent / "copy")
    assert open_folder(copy).digest == digest
    assert open_folder(pack(folder, folder.parent / "in.zip")).digest == digest
    last = "train/cat/3.png"
    changes = {
        "added": lambda root: (root / "train/cat/9.png").write_bytes(png(99)),
        "removed": lambda root: (root / last).unlink(),
        "renamed": lambda root: (root / last).rename(root / "train/cat/4.png"),
        "relabeled": lambda root: (root / last).rename(root / "train/dog/9.png"),
        "changed": lambda root: (root / last).write_bytes(png(98)),
    }
    seen = {digest}
    for name, change in changes.items():
        changed = shutil.copytree(folder, folder.parent / name)
        change(changed)
        seen.add(open_folder(changed).digest)
    assert len(seen) == 1 + len(changes)


def test_digests_of_text(tmp_path):
    def digest(text, split="train"):
        (tmp_path / "words").write_bytes(text)
        os.utime(tmp_path / "words", ns=(len(seen), len(seen)))
        seen.append(text)
        path = tmp_path / "words"
        return open_text("text_file", split, path=path, data_dir=tmp_path).digest

    seen = []
    text = b"To be, or not to be.\n" * 50
    assert digest(text) == digest(text) != digest(text.replace(b"To", b"to"))
    assert digest(text) != digest(text, "test")


def test_links_to_nothing(folder, tmp_path):
    (folder / "train/cat/x.png").symlink_to(tmp_path / "nowhere")
    assert "cannot read" in refused(lambda: open_folder(folder))
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").symlink_to(tmp_path / "nowhere")
    path = tmp_path / "text/*.txt"
    message = refused(lambda: open_text("text_file", "train", path=path))
    assert "cannot read" in message and "a.txt" in message


def test_a_text_file_that_goes_away(tmp_path, monkeypatch):
    (tmp_path / "words").write_bytes(b"To be.\n" * 50)

    def vanish(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", vanish)
    path = tmp_path / "words"
    message = refused(
        lambda: open_text("text_file", "train", path=path, data_dir=tmp_path)
    )
    assert "cannot read 'words'" in message and "Permission denied" in message


@pytest.mark.parametrize(
    "file", ["images.npy", "labels.npy", "tokens.bin", "starts.npy", "info.json"]
)
def test_damaged_prepared_data(tmp_path, file):
    (tmp_path / "words").write_bytes(b"To be.\n" * 50)

    def opened():
        if file in ("images.npy", "labels.npy"):
            return open_images("digits", "test", data_dir=tmp_path)
        path = tmp_path / "words"
        return open_text("text_file", "train", path=path, data_dir=tmp_path)

    opened()
    (path,) = (p for p in tmp_path.rglob(file) if "incomplete" not in str(p))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])
    message = refused(opened)
    assert "prepared data in" in message and "is made again" in message


def test_unreadable_records(tmp_path, monkeypatch):
    """Of a set that is decoded as it is read."""
    monkeypatch.setattr("normjax.data.sources.DECODED_BYTES", 0)
    open_images("digits", "test", data_dir=tmp_path)
    (path,) = tmp_path.rglob("digits-test*")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :: 97] = b"!" * len(content[len(content) // 3 :: 97])
    path.write_bytes(content)
    with pytest.raises((LoadingFailed, UserError)) as error:
        source = open_images("digits", "test", data_dir=tmp_path)
        list(eval_batches(source, batch_size=60))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_reported(tmp_path, workers):
    source = open_images("digits", "test", data_dir=tmp_path)
    batches = train_batches(source, batch_size=8, seed=0, workers=workers)
    next(batches)
    children = multiprocessing.active_children()
    assert len(children) >= workers
    os.kill(children[0].pid, signal.SIGKILL)
    with pytest.raises(LoadingFailed, match=r"in a worker process of .*exit code -9"):
        for _ in range(10_000):
            next(batches)
