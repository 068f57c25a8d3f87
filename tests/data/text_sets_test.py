"""Text of Hugging Face data sets on disk and of webdataset shards."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normjax.core.errors import UserError
from normjax.data import open_text
from tests.data.archives_test import pack
from tests.data.labelled_test import save


def text_of(name, path, split, **spec):
    cache = path.parent / "cache"
    source = open_text(name, split, {"length": 16, **spec}, path=path, data_dir=cache)
    tokens = [int(t) for row in source._tokens for t in [row]]
    return source, bytes(t if t < 256 else 10 for t in tokens)


def documents(name, path, split, **spec):
    """The documents of a split: between the ends in the stream of tokens."""
    return text_of(name, path, split, **spec)[1].decode().strip("\n").split("\n")


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_hugging_face(tmp_path, form):
    root = tmp_path / "in"
    for split, count in (("train", 9), ("validation", 3)):
        words = [f"{split} {i}" for i in range(count)]
        table = pa.table({"text": words, "id": list(range(count))})
        if form == "arrow":
            save(root / split, table.slice(0, 2), table.slice(2))
        else:
            (root / "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(table, root / f"data/{split}-00000-of-00001.parquet")
        if form == "arrow":
            names = json.dumps({"splits": ["train", "validation"]})
            (root / "dataset_dict.json").write_text(names)
    for split, count in (("train", 9), ("validation", 3)):
        found = documents("hf_dataset", root, split)
        assert found == [f"{split} {i}" for i in range(count)]
    with pytest.raises(UserError, match="no text in a column 'txt'") as error:
        documents("hf_dataset", root, "train", field="txt")
    assert "columns: text, id" in str(error.value)


def test_one_split_is_cut_by_hashes(tmp_path):
    root = save(tmp_path / "in", pa.table({"text": [f"row {i}" for i in range(400)]}))
    found = {
        s: documents("hf_dataset", root, s) for s in ("train", "validation", "test")
    }
    every = [text for texts in found.values() for text in texts]
    assert sorted(every) == sorted(f"row {i}" for i in range(400))
    assert 8 <= len(found["test"]) <= 32 and 8 <= len(found["validation"]) <= 32


def test_shards(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for split in ("train", "test"):
        files = {
            "0.txt": f"{split} a".encode(),
            "1.json": json.dumps({"text": f"{split} b", "body": "c"}).encode(),
            "2.txt": b"",
        }
        pack(root / f"{split}-0.tar", files)
    assert documents("webdataset", root, "train") == ["train a", "train b"]
    assert documents("webdataset", root, "test", field="body") == ["test a", "c"]
    with pytest.raises(UserError, match=r"no text in 'train-0\.tar/1'") as error:
        documents("webdataset", root, "train", field="x")
    assert "json with text, body" in str(error.value)


def test_paths_belong_to_sets_of_people(tmp_path):
    with pytest.raises(UserError, match="path those of 'hf_dataset' and 'webdataset'"):
        open_text("pytext", "train", path=tmp_path)
    with pytest.raises(UserError, match="needs a path"):
        open_text("webdataset", "train")
