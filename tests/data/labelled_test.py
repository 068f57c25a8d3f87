"""Hugging Face data sets on disk, written by pyarrow, and shards of webdataset."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from normjax.core.errors import UserError
from normjax.data import open_images
from normjax.data.image_sets import FOLDERS
from tests.data.archives_test import pack, png, refusal

NAMES = ["cat", "dog", "eel"]


def table(count, *, first=0, names=NAMES, label="label", labels=None, image="image"):
    """As `datasets` writes images: {"bytes", "path"}, and its features as JSON."""
    labels = [i % 3 for i in range(count)] if labels is None else labels
    images = [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {image: {"_type": "Image"}}
    if names:
        features[label] = {"names": names, "_type": "ClassLabel"}
    columns = {image: pa.array(images, kind), label: pa.array(labels)}
    known = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({"huggingface": known})


def save(folder, *tables):
    """What save_to_disk leaves of one split."""
    folder.mkdir(parents=True)
    files = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for file, content in zip(files, tables, strict=True):
        with pa.ipc.new_stream(str(folder / file), content.schema) as writer:
            writer.write_table(content, 2)  # rows of a record batch
    state = {"_data_files": [{"filename": file} for file in files]}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def opened(name, path, split="train", **given):
    cache = (path if path.is_dir() else path.parent).parent / "cache"
    return open_images(name, split, path=path, data_dir=cache, **given)


def check(source, seeds, labels):
    assert len(source) == len(seeds)
    images, found = source.gather(np.arange(len(seeds)))
    assert found.tolist() == labels
    for image, seed in zip(images, seeds, strict=True):
        with Image.open(io.BytesIO(png(seed))) as true:
            np.testing.assert_array_equal(image, np.asarray(true))


def test_saved_to_disk(tmp_path):
    root = tmp_path / "in"
    save(root / "train", table(5), table(4, first=5))
    save(root / "validation", table(3, first=50))
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    source = opened("hf_dataset", root)
    assert source.class_names == tuple(NAMES)
    check(source, range(9), [0, 1, 2, 0, 1, 0, 1, 2, 0])
    check(opened("hf_dataset", root, "test"), [50, 51, 52], [0, 1, 2])


def test_one_split_is_cut(tmp_path):
    root = save(tmp_path / "in", table(30))
    parts = {s: opened("hf_dataset", root, s, held_out=0.2) for s in ("train", "test")}
    assert [len(part) for part in parts.values()] == [24, 6]
    assert parts["test"].class_counts.tolist() == [2, 2, 2]


def test_parquet_of_a_hub(tmp_path):
    root = tmp_path / "in"
    (root / "data").mkdir(parents=True)
    for name, content in (
        ("train-00000-of-00002", table(5)),
        ("train-00001-of-00002-0a1b2c", table(2, first=5)),
        ("test-00000-of-00001", table(3, first=50, labels=[-1, 2, None])),
    ):
        pq.write_table(content, root / f"data/{name}.parquet", row_group_size=2)
    check(opened("hf_dataset", root), range(7), [0, 1, 2, 0, 1, 0, 1])
    test = opened("hf_dataset", root, "test")
    check(test, [51], [2])
    assert test.ignored == {"without a label": 2}


def test_labels_of_other_kinds(tmp_path):
    words = save(tmp_path / "words", table(6, names=None, labels=["b", "a"] * 3))
    source = opened("hf_dataset", words, held_out=0.0)
    assert source.class_names == ("a", "b")
    assert source.class_counts.tolist() == [3, 3]
    numbers = save(tmp_path / "numbers", table(6, names=None, label="target"))
    source = opened("hf_dataset", numbers, held_out=0.0)
    assert source.class_names == ("0", "1", "2")
    both = table(6, label="fine").append_column("coarse", pa.array([0, 1] * 3))
    features = {
        "image": {"_type": "Image"},
        **{
            name: {"names": names, "_type": "ClassLabel"}
            for name, names in (("fine", NAMES), ("coarse", ["x", "y"]))
        },
    }
    known = json.dumps({"info": {"features": features}})
    root = save(tmp_path / "both", both.replace_schema_metadata({"huggingface": known}))
    assert "several may hold the labels" in refusal(lambda: opened("hf_dataset", root))
    source = opened("hf_dataset", root, held_out=0.0, label_field="coarse")
    assert source.class_names == ("x", "y")
    line = refusal(lambda: opened("hf_dataset", root, label_field="corse"))
    assert "did you mean 'coarse'" in line


def test_what_is_no_set_of_hugging_face(tmp_path):
    scan = FOLDERS["hf_dataset"]
    (tmp_path / "empty").mkdir()
    assert "no data in" in refusal(lambda: scan(tmp_path / "empty"))
    assert "no such path" in refusal(lambda: scan(tmp_path / "none"))
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "train.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot read" in refusal(lambda: scan(bad))
    text = save(tmp_path / "text", pa.table({"text": ["a"], "label": [0]}))
    assert "none holds the images (columns: text, label)" in refusal(lambda: scan(text))
    with pytest.raises(UserError, match=r"config\.data\.name=hf_dataset"):
        FOLDERS["image_folder"](text)


def shard(path, numbers, label=lambda i: {"cls": str(i % 3)}):
    files = {}
    for i in numbers:
        files[f"{i:04}.png"] = png(i)
        for ending, content in label(i).items():
            files[f"{i:04}.{ending}"] = content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    return pack(path, files)


def test_shards(tmp_path):
    root = tmp_path / "in"
    shard(root / "train-0000.tar", range(4))
    shard(root / "train-0001.tar", range(4, 7))
    shard(root / "val-0000.tar", range(50, 53), lambda i: {"json": '{"label": 1}'})
    source = opened("webdataset", root)
    assert source.class_names == ("0", "1", "2")
    check(source, range(7), [0, 1, 2, 0, 1, 2, 0])
    check(opened("webdataset", root, "test"), [50, 51, 52], [1, 1, 1])
    named = root / "train-{0000..0001}.tar"
    both = open_images(
        "webdataset", "train", path=named, data_dir=tmp_path / "c", held_out=0.0
    )
    check(both, range(7), [0, 1, 2, 0, 1, 2, 0])
    line = refusal(lambda: FOLDERS["webdataset"](root / "train-{0000..0002}.tar"))
    assert "no shard" in line and "train-0002.tar" in line


def test_shards_with_names_and_with_nothing(tmp_path):
    root = tmp_path / "in"
    label = {0: {"cls": "cat"}, 1: {"cls": "dog"}, 2: {"txt": "a caption"}}
    shard(root / "a.tar", range(6), lambda i: label[i % 3])
    folder = FOLDERS["webdataset"](root, 0.0)
    assert folder.class_names == ("cat", "dog")
    assert [y for _, y in folder.splits["train"]] == [0, 1, 0, 1]
    assert folder.left_out["without a label"] == 2
    shard(root / "b.tar", range(3))
    line = refusal(lambda: FOLDERS["webdataset"](root))
    assert "numbers and names" in line
    with pytest.raises(UserError, match=r"config\.data\.name=webdataset"):
        FOLDERS["image_folder"](root / "a.tar")
