"""Sources: the embedded digits, image folders of every shape, TFDS names."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from normjax.core.errors import UserError
from normjax.data import open_images


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


def picture(seed, size=(6, 5), mode="RGB"):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(array).convert(mode)


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def write(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tiny_tree(root, splits=("train/", "test/"), per_class=3, kind="PNG"):
    """A folder of two classes; returns {name: bytes}."""
    files = {}
    for prefix in splits:
        for i in range(per_class):
            for j, label in enumerate(("cat", "dog")):
                name = f"{prefix}{label}/{i}.{kind.lower()}"
                files[name] = encoded(picture(100 * len(prefix) + 2 * i + j), kind)
                write(root, name, files[name])
    return files


def pack(files, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def names(source):
    return [source.name_of(i).split("(")[1][:-1] for i in range(len(source))]


def open_folder(path, tmp_path, split="train"):
    data_dir = tmp_path / "prepared"
    return open_images("image_folder", split, data_dir=data_dir, path=path)


def refused(path, tmp_path):
    """The error of opening a folder, after a look at what it left behind."""
    with pytest.raises(UserError) as error:
        open_folder(path, tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "prepared").rglob("dataset_info.json"))
    assert not list((tmp_path / "prepared").rglob("incomplete*"))
    return str(error.value)


def test_digits_are_scikit_learns(digits_dir):
    from sklearn.datasets import load_digits

    raw = load_digits()
    train = open_images("digits", "train", data_dir=digits_dir)
    test = open_images("digits", "test", data_dir=digits_dir)
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == (8, 8, 1) and train.num_classes == 10
    assert train.class_names == tuple("0123456789")
    scaled = np.round(raw.images * 255 / 16).astype(np.uint8)[..., None]
    image, label = train[0]
    np.testing.assert_array_equal(image, scaled[0])
    assert image.dtype == np.uint8 and label == raw.target[0]
    images, labels = test.gather(np.arange(360))
    np.testing.assert_array_equal(np.bincount(labels), [36] * 10)
    both = np.concatenate([images, train.gather(np.arange(1437))[0]])
    order = np.lexsort(both.reshape(1797, -1).T)
    expected = np.lexsort(scaled.reshape(1797, -1).T)
    np.testing.assert_array_equal(both[order], scaled[expected])


def test_digits_read_gives_png_and_pickles_without_the_cache(digits_dir):
    source = open_images("digits", "test", data_dir=digits_dir)
    data, label = source.read(5)
    array = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(source[5][0][..., 0], array)
    assert source[5][1] == label and source[-1][1] == source[359][1]
    assert "example 5 of 'digits' split 'test'" in source.name_of(5)
    with pytest.raises(IndexError):
        source[360]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 20_000
    np.testing.assert_array_equal(copy[5][0], source[5][0])


def test_slices_of_a_split(digits_dir):
    half = open_images("digits", "train[:50%]", data_dir=digits_dir)
    assert len(half) in (718, 719)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("wrapper", ["", "pets/"])
def test_image_folder_with_splits(tmp_path, zipped, wrapper):
    files = tiny_tree(tmp_path / "in" / wrapper)
    path = tmp_path / "in"
    if zipped:
        path = pack(files, tmp_path / "pets.zip", wrapper)
    for split in ("train", "test"):
        source = open_folder(path, tmp_path, split)
        assert len(source) == 6 and source.shape == (5, 6, 3)
        assert source.class_names == ("cat", "dog")
        for i, name in enumerate(names(source)):
            data, label = source.read(i)
            assert data == files[name.removeprefix(wrapper)]  # untouched bytes
            assert name.split("/")[-2] == source.class_names[label]
            expected = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(source[i][0], expected)


def test_image_folder_accepts_jpeg_and_val_for_test(tmp_path):
    files = tiny_tree(tmp_path / "in", ("train/", "val/"), kind="JPEG")
    write(tmp_path / "in", "train/cat/.hidden.jpg", b"not read")
    write(tmp_path / "in", "train/cat/notes.txt", b"not read")
    source = open_folder(tmp_path / "in", tmp_path, "test")
    assert source.read(0)[0] == files["val/cat/0.jpeg"]
    assert len(open_folder(tmp_path / "in", tmp_path, "train")) == 6


def test_image_folder_with_test_and_validation(tmp_path):
    tiny_tree(tmp_path / "in", ("train/", "val/", "test/"))
    assert len(open_folder(tmp_path / "in", tmp_path, "validation")) == 6
    with pytest.raises(UserError, match=r"unknown split of 'image_folder': 'vali'"):
        open_folder(tmp_path / "in", tmp_path, "vali")


def test_image_folder_without_splits_holds_out_a_tenth(tmp_path):
    tiny_tree(tmp_path / "a", ("",), per_class=20)
    tiny_tree(tmp_path / "b", ("",), per_class=20)
    parts = {}
    for folder in ("a", "b"):
        for split in ("train", "test"):
            source = open_folder(tmp_path / folder, tmp_path, split)
            counts = np.bincount([source.read(i)[1] for i in range(len(source))])
            np.testing.assert_array_equal(counts, [18 if split == "train" else 2] * 2)
            parts[folder, split] = names(source)
    assert parts["a", "test"] == parts["b", "test"]  # the place does not matter
    assert not set(parts["a", "test"]) & set(parts["a", "train"])


def test_a_class_may_be_called_train(tmp_path):
    for label in ("train", "tram"):
        for i in range(2):
            write(tmp_path / "in", f"{label}/{i}.png", encoded(picture(i)))
    assert open_folder(tmp_path / "in", tmp_path).class_names == ("train", "tram")


def test_all_gray_images_have_one_channel_and_others_become_rgb(tmp_path):
    for i, label in enumerate(("a", "a", "b", "b")):
        gray = encoded(picture(i, mode="L"))
        write(tmp_path / "gray", f"{label}/{i}.png", gray)
    assert open_folder(tmp_path / "gray", tmp_path).shape == (5, 6, 1)

    rgba = picture(1)
    rgba.putalpha(picture(2, mode="L"))
    palette = picture(3).quantize(8)
    clear = encoded(palette, transparency=bytes([0, 128]))
    deep = Image.fromarray((np.arange(30, dtype=np.uint16) * 2000).reshape(5, 6))
    kinds = {
        "a/gray.png": encoded(picture(0, mode="L")),
        "a/rgba.png": encoded(rgba),
        "a/palette.png": encoded(palette),
        "a/clear.png": clear,
        "b/deep.png": encoded(deep),
        "b/cmyk.jpg": encoded(picture(4, mode="CMYK"), "JPEG"),
        "b/rgb.png": encoded(picture(5)),
    }
    for name, data in kinds.items():
        write(tmp_path / "mixed", name, data)
    seen = {}
    for split in ("train", "test"):
        source = open_folder(tmp_path / "mixed", tmp_path, split)
        assert source.shape == (5, 6, 3)
        seen |= {n: source[i][0] for i, n in enumerate(names(source))}
    assert set(seen) == set(kinds)
    np.testing.assert_array_equal(seen["a/rgba.png"], np.asarray(rgba)[..., :3])
    exact = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(seen["a/palette.png"], exact)
    np.testing.assert_array_equal(seen["a/clear.png"], exact)
    np.testing.assert_array_equal(seen["b/deep.png"][..., 1], np.asarray(deep) // 256)
    gray = np.asarray(picture(0, mode="L"))
    np.testing.assert_array_equal(seen["a/gray.png"], np.stack([gray] * 3, -1))


def test_a_changed_folder_is_prepared_again(tmp_path):
    tiny_tree(tmp_path / "in")
    first = open_folder(tmp_path / "in", tmp_path)
    prepared = list((tmp_path / "prepared").rglob("dataset_info.json"))
    stamp = prepared[0].stat().st_mtime_ns
    open_folder(tmp_path / "in", tmp_path)
    assert prepared[0].stat().st_mtime_ns == stamp  # reused
    write(tmp_path / "in", "train/cat/9.png", encoded(picture(77)))
    second = open_folder(tmp_path / "in", tmp_path)
    assert (len(first), len(second)) == (6, 7)
    os.utime(tmp_path / "in/train/cat/9.png", ns=(0, 0))
    open_folder(tmp_path / "in", tmp_path)
    assert len(list((tmp_path / "prepared").rglob("dataset_info.json"))) == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_image_is_named(tmp_path, kind, zipped):
    files = tiny_tree(tmp_path / "in", kind=kind)
    bad = f"train/dog/1.{kind.lower()}"
    data = encoded(picture(0, size=(64, 48)), kind)
    files[bad] = data[: len(data) // 2]
    write(tmp_path / "in", bad, files[bad])
    path = pack(files, tmp_path / "in.zip") if zipped else tmp_path / "in"
    message = refused(path, tmp_path)
    assert repr(bad) in message and "truncated" in message
    write(tmp_path / "in", bad, data)
    if not zipped:
        assert len(open_folder(path, tmp_path)) == 6


def test_a_damaged_zip_member_is_named(tmp_path):
    files = tiny_tree(tmp_path / "in")
    archive = pack(files, tmp_path / "in.zip")
    data = files["train/dog/1.png"]
    content = archive.read_bytes()
    assert content.count(data) == 1
    archive.write_bytes(content.replace(data, data[:-1] + b"!"))
    message = refused(archive, tmp_path)
    assert "'train/dog/1.png'" in message and "CRC" in message


def test_faulty_folders_are_refused_in_one_line(tmp_path):
    tiny_tree(tmp_path / "empty_class")
    (tmp_path / "empty_class/train/eel").mkdir()
    message = refused(tmp_path / "empty_class", tmp_path)
    assert "class folder 'train/eel' has no image" in message

    assert "no such path" in refused(tmp_path / "nowhere", tmp_path)
    write(tmp_path, "flat/1.png", encoded(picture(0)))
    assert "lies outside a class folder" in refused(tmp_path / "flat", tmp_path)
    (tmp_path / "void").mkdir()
    assert "one folder a class" in refused(tmp_path / "void", tmp_path)
    text = write(tmp_path, "a.zip", b"no zip at all")
    assert "no readable zip" in refused(text, tmp_path)

    tiny_tree(tmp_path / "extra")
    write(tmp_path / "extra", "junk/cat/1.png", encoded(picture(0)))
    assert "folder 'junk' is no split" in refused(tmp_path / "extra", tmp_path)
    tiny_tree(tmp_path / "alien")
    write(tmp_path / "alien", "test/eel/1.png", encoded(picture(0)))
    assert "class 'eel' has no folder" in refused(tmp_path / "alien", tmp_path)


def test_an_unfinished_preparation_is_never_taken_as_complete(digits_dir, tmp_path):
    target = tmp_path / "digits"
    (target / "incomplete.abc").mkdir(parents=True)
    write(target, "incomplete.abc/dataset_info.json", b"{")
    assert len(open_images("digits", "test", data_dir=tmp_path)) == 360


def test_data_dir_from_the_environment_and_an_unwritable_one(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMJAX_DATA_DIR", str(tmp_path / "here"))
    open_images("digits", "test")
    assert (tmp_path / "here/digits").is_dir()
    with pytest.raises(UserError, match=r"data_dir .*caf.* is no UTF-8"):
        open_images("digits", "test", data_dir=tmp_path / "caf\udce9")
    with pytest.raises(UserError, match=r"data_dir .*caf.* is no UTF-8"):
        open_images("digits", "test", data_dir=tmp_path / "caf\udce9")
    blocker = write(tmp_path, "file", b"")
    with pytest.raises(UserError, match=r"cannot write to .*NORMJAX_DATA_DIR"):
        open_images("digits", "test", data_dir=blocker)


def test_preparing_at_once_in_two_processes(tmp_path):
    code = (
        "import sys; from normjax.data import open_images;"
        "print(len(open_images('digits', 'test', data_dir=sys.argv[1])))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in pair]
    assert [out for out, _ in results] == [b"360\n"] * 2
    lines = [line for _, err in results for line in err.splitlines()]
    assert all(line.startswith(b"waiting for") for line in lines)  # TFDS keeps quiet
    assert {p.name for p in (tmp_path / "digits").iterdir()} == {".1.0.0.lock", "1.0.0"}


def test_wrong_names_splits_and_paths(digits_dir, tmp_path):
    def message(*args, **options):
        with pytest.raises(UserError) as error:
            open_images(*args, data_dir=digits_dir, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    unknown = message("digit", "train")
    assert "did you mean 'digits'" in unknown and "image_folder" in unknown
    assert "'cifar10'" in message("cifar_10", "train")
    assert "unknown data set 'no such!'" in message("no such!", "train")
    absent = message("cifar10", "train")
    assert "tfds build cifar10 --file_format=array_record --data_dir=" in absent
    split = message("digits", "tset")
    assert "did you mean 'test'" in split and "allowed: test, train" in split
    assert "only that" in message("digits", "train", path="x")
    assert "needs data.path" in message("image_folder", "train")


def test_a_tfds_set_is_read_from_its_files(digits_dir, tmp_path):
    open_images("digits", "test", data_dir=digits_dir)
    shutil.copytree(digits_dir / "digits/1.0.0", tmp_path / "mnist/3.0.1")
    info = tmp_path / "mnist/3.0.1/dataset_info.json"
    content = json.loads(info.read_text()) | {"name": "mnist", "version": "3.0.1"}
    info.write_text(json.dumps(content))
    for file in info.parent.glob("digits-*"):
        file.rename(file.with_name(file.name.replace("digits", "mnist")))
    source = open_images("mnist", "test", data_dir=tmp_path)
    assert len(source) == 360 and source.shape == (8, 8, 1)
    info.write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError) as error:
        open_images("mnist", "test", data_dir=tmp_path)
    assert "tfds convert_format --dataset_version_dir=" in str(error.value)
    assert "--out_file_format=array_record" in str(error.value)


def test_imports_are_light_and_tensorflow_stays_out(digits_dir):
    code = """
import sys
import normjax.data
heavy = ("tensorflow_datasets", "sklearn", "matplotlib", "grain", "jax", "rich")
assert not [m for m in heavy if m in sys.modules]
source = normjax.data.open_images("digits", "train", data_dir=sys.argv[1])
batches = normjax.data.train_batches(source, batch_size=4, seed=0)
next(batches)
batches.close()
import normjax.data.mix
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", code, str(digits_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
