"""Slices of splits that are sorted by class; names and gray images of folders."""

import json

import numpy as np
import pytest
from PIL import Image

from normjax.core.errors import UserError
from normjax.data import open_images
from normjax.data.slices import labels_of, stratified


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def gray(value, size=(3, 2)):
    return Image.new("L", size, value)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """10, 20 and 5 images of three classes, each of a value of its own."""
    root = tmp_path_factory.mktemp("slices")
    for first, name, count in ((0, "a", 10), (50, "b\nc", 20), (100, "d", 5)):
        for i in range(count):
            write(root / f"in/train/{name}/{i:02}.png", gray(first + i))
    return root


def opened(root, split, **options):
    return open_images(
        "image_folder", split, path=root / "in", data_dir=root / "made", **options
    )


def values(source):
    return [int(source[i][0][0, 0, 0]) for i in range(len(source))]


def test_stratified_order():
    labels = labels_of([(0, 10), (1, 20), (2, 5)])
    order = stratified(labels)
    assert sorted(order) == list(range(35))
    for size in range(36):
        taken = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(taken - size * np.array([10, 20, 5]) / 35).max() <= 1
    # Within a class the order is that of the names.
    assert all(np.diff(order[labels[order] == label]).min() > 0 for label in range(3))


def test_a_slice_takes_its_part_of_every_class(counted):
    first, rest = (opened(counted, s) for s in ("train[:80%]", "train[80%:]"))
    assert first.class_names == ("a", "b\nc", "d")
    assert first.class_counts.tolist() == [8, 16, 4]
    assert rest.class_counts.tolist() == [2, 4, 1]
    assert values(rest) == [8, 9, 66, 67, 68, 69, 104]
    assert sorted(values(first) + values(rest)) == values(opened(counted, "train"))
    assert not first.meets(rest) and opened(counted, "train[:90%]").meets(rest)
    for source in (first, rest):
        labels = [source.read(i)[1] for i in range(len(source))]
        assert labels == sorted(labels) and set(labels) == {0, 1, 2}
        images, again = source.gather(np.arange(len(source)))
        assert again.tolist() == labels
        assert images[:, 0, 0, 0].tolist() == values(source)
    assert "b\\nc/19.png" in rest.name_of(5)
    assert len({first.digest, rest.digest, opened(counted, "train").digest}) == 3


def test_slices_are_added(counted):
    both = opened(counted, "train[:20%]+train[80%:]")
    assert both.class_counts.tolist() == [4, 8, 2]
    assert values(both)[:4] == [0, 1, 50, 51] and values(both)[-1] == 104


def test_wrong_splits(counted):
    with pytest.raises(
        UserError, match=r"'test' .*a slice is a split, too, such as tr"
    ):
        opened(counted, "test")
    with pytest.raises(UserError, match=r"split 'train\[:99\]' .*with 35 examples"):
        opened(counted, "train[:99]")
    with pytest.raises(UserError, match=r"split 'train\[5:5\]' .* is empty"):
        opened(counted, "train[5:5]")


def test_gray_images_become_rgb_if_asked_for(counted):
    one, three = (opened(counted, "train", channels=c) for c in (None, 3))
    assert (one.shape, three.shape) == ((2, 3, 1), (2, 3, 3))
    np.testing.assert_array_equal(three[12][0], np.repeat(one[12][0], 3, -1))


def test_what_is_left_out_is_said_once_and_kept(counted, tmp_path, capfd):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            write(tmp_path / f"in/{split}/{name}/1.png", gray(1))
    (tmp_path / "in/train/cat/2.heic").write_bytes(b"")
    (tmp_path / "in/train/cat/.DS_Store").write_bytes(b"")
    for split in ("train", "test"):
        assert opened(tmp_path, split).ignored == {
            ".heic": 1,
            "hidden or of the system": 1,
        }
    said = capfd.readouterr().err
    assert said.count("left out: 1 .heic, 1 hidden or of the system\n") == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_loses_all_its_images_is_refused(tmp_path, split):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(2):
                write(tmp_path / f"in/{part}/{name}/{i}.png", gray(i))
    for i in range(2):
        (tmp_path / f"in/{split}/cat/{i}.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=f"class 'cat' has no image left in .*'{split}'"
    ):
        opened(tmp_path, "train", undecodable="skip")


def test_files_whose_values_fill_other_ranges_are_refused(tmp_path):
    for number, top in enumerate((1, 0, 0.5, 1, 200, 1)):
        image = Image.fromarray(np.full((4, 4), top, np.float32))
        write(tmp_path / f"in/train/{'ab'[number // 3]}/{number}.tif", image)
    with pytest.raises(UserError, match=r"b/4\.tif.* 0 to 255, those of .* 0 to 1"):
        opened(tmp_path, "train")
    assert opened(tmp_path, "train", undecodable="skip").left_out == 1


def test_names_that_are_no_utf8(tmp_path):
    for name in ("cat", "caf\udce9"):
        for i in range(2):
            write(tmp_path / f"in/{name}/{i}\udce9.png", gray(i))
    source = opened(tmp_path, "train")
    assert source.class_names == ("caf\udce9", "cat")
    assert json.loads(json.dumps(source.class_names)) == list(source.class_names)
    where = source.name_of(0)
    where.encode()
    assert "caf\\xe9/" in where and where.isprintable()
