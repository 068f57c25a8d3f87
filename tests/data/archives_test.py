"""Image folders inside of tars, and parts of folders that are held out."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from normjax.core.errors import UserError
from normjax.data import open_images
from normjax.data.folder import scan


def png(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def files_of(*prefixes, count=4, classes=("cat", "dog")):
    return {
        f"{prefix}{label}/{i}.png": png(100 * k + 10 * j + i)
        for k, prefix in enumerate(prefixes)
        for j, label in enumerate(classes)
        for i in range(count)
    }


def pack(path, files, prefix=""):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def refusal(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "./", "pets/", "./pets/"])
def test_a_tar_is_read_as_the_folder_that_it_holds(tmp_path, prefix):
    files = files_of("train/", "val/")
    path = pack(tmp_path / "pets.tar", {**files, "train/._1.png": b"x"}, prefix)
    folder = scan(path)
    assert folder.class_names == ("cat", "dog")
    plain = scan(write(tmp_path / "plain", files))
    assert folder.splits.keys() == plain.splits.keys() == {"train", "test"}
    with folder.reader() as read:
        for split, pairs in plain.splits.items():
            assert [label for _, label in folder.splits[split]] == [y for _, y in pairs]
            for (inside, _), (name, _) in zip(folder.splits[split], pairs, strict=True):
                assert read(inside) == files[name]
    source = open_images("image_folder", "train", path=path, data_dir=tmp_path / "c")
    images, labels = source.gather(np.arange(8))
    with Image.open(io.BytesIO(files["train/dog/1.png"])) as image:
        np.testing.assert_array_equal(images[5], np.asarray(image))
    assert labels.tolist() == [0] * 4 + [1] * 4


def test_tars_that_cannot_be_read(tmp_path):
    good = pack(tmp_path / "good.tar", files_of("")).read_bytes()
    packed = tmp_path / "pets.tar.gz"
    packed.write_bytes(gzip.compress(good))
    assert "inside of gzip" in refusal(lambda: scan(packed))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good[: good.rindex(b"IEND")])
    assert "unexpected end of data" in refusal(lambda: scan(cut))
    none = tmp_path / "none.tar"
    none.write_bytes(b"no tar" * 200)
    assert "no readable tar" in refusal(lambda: scan(none))


def held(path, fraction):
    folder = scan(path, fraction)
    return {
        split: {name for name, _ in pairs} for split, pairs in folder.splits.items()
    }


def test_a_part_of_each_class_is_held_out(tmp_path):
    files = files_of("", count=20, classes=("a", "b", "c"))
    root = write(tmp_path / "here", files)
    splits = held(root, 0.25)
    assert len(splits["test"]) == 15 and len(splits["train"]) == 45
    for label in "abc":
        assert sum(name.startswith(f"{label}/") for name in splits["test"]) == 5
    assert held(root, 0.1)["test"] < splits["test"]  # growing, not drawn anew
    assert held(root, 0.0) == {"train": set(files)}
    # elsewhere, in an archive, inside of a folder: the same
    elsewhere = write(tmp_path / "there" / "pets", files).parent
    assert {name.removeprefix("pets/") for name in held(elsewhere, 0.25)["test"]} == (
        splits["test"]
    )
    assert held(pack(tmp_path / "x.tar", files), 0.25) == splits


def test_a_new_image_moves_at_most_one_other(tmp_path):
    root = write(tmp_path, files_of("", count=20))
    before = held(root, 0.25)["test"]
    for i in range(6):
        (root / f"cat/new{i}.png").write_bytes(b"x")
        after = held(root, 0.25)["test"]
        assert len(before ^ after) <= 2
        before = after


def test_what_is_held_out_is_prepared_anew(tmp_path):
    root = write(tmp_path / "in", files_of("", count=10))
    cache = tmp_path / "cache"

    def sizes(**given):
        return [
            len(open_images("image_folder", s, path=root, data_dir=cache, **given))
            for s in ("train", "test")
        ]

    assert sizes() == [18, 2]
    assert sizes(held_out=0.5) == [10, 10]
    assert sizes() == [18, 2]
    line = refusal(
        lambda: open_images(
            "image_folder", "test", path=root, data_dir=cache, held_out=0.0
        )
    )
    assert "split of 'image_folder'" in line
