"""What of a folder or zip is read as which split and class: names alone, no pixels."""

import os
import zipfile

import pytest

from normjax.core.errors import UserError
from normjax.data.folder import scan
from normjax.data.layout import split_of


def tree(root, names):
    """Files of one byte; a name that ends with "/" is a folder."""
    for name in names:
        path = os.fsencode(root) + b"/" + os.fsencode(name)
        os.makedirs(
            path if name.endswith("/") else os.path.dirname(path), exist_ok=True
        )
        if not name.endswith("/"):
            with open(path, "wb") as file:
                file.write(b"x")
    return root


def pets(prefix="", classes=("cat", "dog"), count=3):
    return [f"{prefix}{label}/{i}.png" for label in classes for i in range(count)]


def sizes(folder):
    return {split: len(files) for split, files in folder.splits.items()}


def refusal(path):
    with pytest.raises(UserError) as error:
        scan(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("Train", "TRAINING", "training_set", "trainval")
        ),
        *((name, "test") for name in ("Test", "Testing", "eval", "Hold-Out", "test1")),
        *(
            (name, "validation")
            for name in ("Val", "Valid", "dev", "val2017", "valset")
        ),
        *(
            (name, None)
            for name in ("trainer", "cat", "set", "images", "contest", "12")
        ),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("around", ["", "pets/", "pets/images/"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Training", "Testing"), {"train": 6, "test": 6}),
        (("train", "Val"), {"train": 6, "test": 6}),
        (("train", "holdout", "dev"), {"train": 6, "test": 6, "validation": 6}),
        (("test",), {"test": 6}),
    ],
)
def test_folders_of_splits(tmp_path, around, names, expected):
    files = [file for name in names for file in pets(f"{around}{name}/")]
    beside = ["labels.csv", f"{around}readme.txt", f"{around}annotations/1.xml"]
    folder = scan(tree(tmp_path, [*files, *beside]))
    assert folder.class_names == ("cat", "dog") and sizes(folder) == expected
    assert folder.left_out == {".csv": 1, ".txt": 1, ".xml": 1}


def test_a_split_within_a_folder_of_its_name(tmp_path):
    names = pets("training_set/training_set/") + pets("test_set/test_set/")
    folder = scan(tree(tmp_path, names))
    assert folder.class_names == ("cat", "dog")
    assert sizes(folder) == {"train": 6, "test": 6}


def test_images_without_a_class_are_left_out_of_other_splits_than_train(tmp_path):
    flat = [f"test/{i}.png" for i in range(5)]
    folder = scan(tree(tmp_path, [*pets("train/"), *flat]))
    assert folder.class_names == ("cat", "dog") and sizes(folder) == {"train": 6}
    assert folder.left_out == {"without a class folder in test/": 5}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/1.png", "test/2.png"], "images right inside 'test' and 'train'"),
        ([*pets(), "test/1.png"], "images right inside 'test'"),
        (["train/1.png", *pets("test/")], "images right inside 'train', in no class"),
        ([*pets("train/"), "train/sheet.png"], "'train/sheet.png' lies outside"),
        ([*pets("train/"), *pets("test/"), "test/x.png"], "'test/x.png' lies outside"),
        ([*pets("train/"), *pets("test/"), "x.png"], "'x.png' lies outside"),
        ([*pets(), "x.png"], "'x.png' lies outside"),
        ([*pets("train/"), "test/"], "split folder 'test' has no image"),
        ([*pets(), "eel/"], "class folder 'eel' has no image"),
        ([*pets(), "eel/1.heic", "eel/2.heic"], "class folder 'eel' has no image"),
        ([*pets("train/"), *pets("Train/")], "both are split 'train'"),
        ([*pets("seg_train/"), *pets("seg_test/")], "'seg_test' and 'seg_train' look"),
        ([*pets("cat/train/"), *pets("cat/test/"), *pets("dog/")], "folders of splits"),
        ([*pets("fold1/"), *pets("fold2/")], "is 'fold1' the class of the images in"),
        ([*pets("train/"), *pets("test/", ("Cat", "dog"))], "(there is 'cat')"),
        (pets(classes=("cat",)), "one class only, 'cat'"),
        (["images/1.png", "images/2.png", "labels.csv"], "one class only, 'images'"),
        (pets(count=1), "one image a class is too few to hold any out"),
        (["a.heic", "b/c.heic", "d.txt"], "no image in"),
        (["a.heic", "b/c.heic", "d.txt"], "(there are files: 2 .heic, 1 .txt)"),
    ],
)
def test_what_may_be_read_in_two_ways_or_in_none_is_refused(tmp_path, names, message):
    assert message in refusal(tree(tmp_path, names))


@pytest.mark.parametrize("other", ["tram", "cat/black"])
def test_classes_may_be_called_as_splits_or_hold_folders(tmp_path, other):
    names = [*(f"train/{i}.png" for i in range(3)), *pets(classes=(other,))]
    if other != "tram":
        names = [*pets(), *pets(classes=(other,))]
    folder = scan(tree(tmp_path, names))
    assert folder.class_names == (
        ("train", "tram") if other == "tram" else ("cat", "dog")
    )
    assert len(folder.notes) == (other != "tram")


JUNK = (
    *("@eaDir/cat/x.jpg", "#recycle/a/x.png", "@Recycle/x.png", "lost+found/x.png"),
    *("__MACOSX/cat/x.jpg", ".DS_Store", "cat/._0.png", "$RECYCLE.BIN/x.png"),
    *("cat/.ipynb_checkpoints/0.png", ".git/x.png", "cat/Thumbs.db", "dog/desktop.ini"),
)


def test_what_systems_leave_behind_is_left_out(tmp_path):
    names = [*pets(), *JUNK, "notes.txt", "cat/a.CSV", "cat/README"]
    folder = scan(tree(tmp_path, names))
    assert folder.class_names == ("cat", "dog") and sum(sizes(folder).values()) == 6
    others = {".txt": 1, ".csv": 1, "with another ending": 1}
    assert folder.left_out == {"hidden or of the system": 12, **others}
    empty = tree(tmp_path / "only", ["cat/0.png", "cat/1.png", "dog/Thumbs.db"])
    assert "class folder 'dog' has no image" in refusal(empty)


@pytest.mark.parametrize(
    "ending", ["jfif", "jpe", "JPEG", "Png", "webp", "avif", "pgm"]
)
def test_endings_of_images(tmp_path, ending):
    folder = scan(tree(tmp_path, [f"{c}/{i}.{ending}" for c in "ab" for i in (1, 2)]))
    assert sizes(folder) == {"train": 2, "test": 2}


def test_names_of_any_bytes(tmp_path):
    classes = ("a\tb", "c\nd", "[x]", os.fsdecode(b"caf\xe9"))
    folder = scan(tree(tmp_path, pets(classes=classes)))
    assert folder.class_names == tuple(sorted(classes))
    assert sizes(folder) == {"train": 8, "test": 4}
    assert all(os.path.exists(tmp_path / n) for n, _ in folder.splits["train"])


def test_letters_with_their_accents_apart_are_the_same_class(tmp_path):
    both = pets("train/", ("caf\u00e9", "b")) + pets("test/", ("cafe\u0301", "b"))
    assert scan(tree(tmp_path, both)).class_names == ("b", "caf\u00e9")


def test_classes_that_differ_in_case_alone_are_told(tmp_path):
    folder = scan(tree(tmp_path, pets(classes=("Cat", "cat"))))
    assert folder.class_names == ("Cat", "cat") and "'Cat' and 'cat'" in folder.notes[0]


def test_links(tmp_path):
    tree(tmp_path / "in", pets())
    tree(tmp_path / "more", ["7.png"])
    (tmp_path / "in/cat/above").symlink_to(tmp_path / "in")
    (tmp_path / "in/cat/here").symlink_to(tmp_path / "in/cat")
    (tmp_path / "in/dog/more").symlink_to(tmp_path / "more")
    os.mkfifo(tmp_path / "in/dog/9.png")
    folder = scan(tmp_path / "in")
    assert sum(sizes(folder).values()) == 7
    assert folder.left_out == {"links to a folder above": 2, "no regular files": 1}
    (tmp_path / "in/cat/gone.png").symlink_to(tmp_path / "gone")
    assert "cannot read" in refusal(tmp_path / "in")


def test_a_swap_of_two_files_of_one_size_and_time_is_noticed(tmp_path):
    tree(tmp_path, pets())
    for name in pets():
        os.utime(tmp_path / name, ns=(0, 0))
    before = scan(tmp_path).fingerprint
    assert scan(tmp_path).fingerprint == before
    (tmp_path / "cat/1.png").rename(tmp_path / "x")
    (tmp_path / "dog/1.png").rename(tmp_path / "cat/1.png")
    (tmp_path / "x").rename(tmp_path / "dog/1.png")
    assert scan(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("names", "replaced", "first"),
    [
        (["./", "./cat/", *("./" + name for name in pets())], (b"", b""), "cat"),
        ([n.replace("/", "\\") for n in pets("pets/train/")], (b"", b""), "cat"),
        (["/data/" + name for name in pets()], (b"", b""), "cat"),
        (["pets/", *pets("pets/"), "__MACOSX/pets/._x.png"], (b"", b""), "cat"),
        (pets(classes=("cafXX", "dog")), (b"cafXX", b"caf\xc3\xa9"), "caf\u00e9"),
        (pets(classes=("cafX", "dog")), (b"cafX", b"caf\xe9"), "caf\u0398"),
    ],
)
def test_zips_of_all_programs(tmp_path, names, replaced, first):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, b"" if name.endswith("/") else str(number))
    path.write_bytes(path.read_bytes().replace(*replaced))
    folder = scan(path)
    assert folder.class_names == tuple(sorted((first, "dog")))
    with folder.reader() as read:
        inside = {read(name) for files in folder.splits.values() for name, _ in files}
    assert len(inside) == 6


def test_a_zip_whose_names_are_no_utf8_though_marked(tmp_path):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("caf\u00e9/1.png", b"x")
    content = path.read_bytes().replace("\u00e9".encode(), b"\xe9\xe9")
    path.write_bytes(content)
    assert "is no readable zip" in refusal(path)
