"""Files that are given as text: packed, marked, no text at all, and named by splits."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import shutil
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normjax.core.errors import UserError
from normjax.data import corpus, open_text

LINE = b"the quick brown fox jumps over the lazy dog\n"
TEXT = LINE * 40


def put(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def texts(tmp_path, split="train", path="", **parts):
    """The documents of a split, as the rows hold them."""
    spec = {"length": 4000, "layout": "padded", **parts}
    cache = tmp_path / "cache"
    source = open_text("text_file", split, spec, data_dir=cache, path=str(path))
    rows = [source[i] for i in range(len(source))]
    return [bytes(row["tokens"][row["mask"]][1:].tolist()) for row in rows]


UMLAUTS = "Füße\n" * 40
READ = {
    "a.txt.gz": (gzip.compress(TEXT), TEXT),
    "b.txt": (gzip.compress(TEXT[:500]) + gzip.compress(TEXT[500:]), TEXT),
    "c.bz2": (bz2.compress(TEXT), TEXT),
    "d.txt.xz": (lzma.compress(TEXT), TEXT),
    "e.lzma": (lzma.compress(TEXT, lzma.FORMAT_ALONE), TEXT),
    "f.txt": (b"\xef\xbb\xbf" + TEXT, TEXT),
    "g.txt": (UMLAUTS.encode("utf-16"), UMLAUTS.encode()),
    "h.txt": ("\ufeff" + UMLAUTS).encode("utf-16-be"),
    "i.txt": (UMLAUTS.encode("utf-32"), UMLAUTS.encode()),
    "j.txt": (TEXT.replace(b"\n", b"\r\n"), TEXT.replace(b"\n", b"\r\n")),
    "k.gz.xz": (lzma.compress(gzip.compress(TEXT)), TEXT),
    "README": (TEXT, TEXT),
}
READ["h.txt"] = (READ["h.txt"], UMLAUTS.encode())


@pytest.mark.parametrize("name", READ)
def test_packed_and_marked_text_is_read(tmp_path, name):
    raw, text = READ[name]
    put(tmp_path, {name: raw})
    assert texts(tmp_path, train_path=str(tmp_path / name)) == [text]


def test_a_lone_packed_file_is_cut_after_it_is_unpacked(tmp_path):
    lines = [b"line %d\n" % i for i in range(200)]
    put(tmp_path, {"a.txt.gz": gzip.compress(b"".join(lines))})
    parts = [texts(tmp_path, s, tmp_path / "a.txt.gz")[0] for s in corpus.SPLITS]
    assert b"".join(parts) == b"".join(lines)
    assert all(part.startswith(b"line") and part.endswith(b"\n") for part in parts)


def test_zips_are_told_by_their_bytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.bin", "w") as archive:
        archive.writestr("a.txt.gz", gzip.compress(TEXT))
    assert texts(tmp_path, train_path=str(tmp_path / "texts.bin")) == [TEXT]


def test_lines_of_json_are_documents(tmp_path):
    records = [{"text": "Füße", "id": 1}, {"text": ""}, {"text": "two\nlines"}]
    raw = "\n".join(json.dumps(record) for record in records).encode()
    put(tmp_path, {"a.jsonl": raw, "b.ndjson.gz": gzip.compress(raw)})
    for name in ("a.jsonl", "b.ndjson.gz"):
        found = texts(tmp_path, train_path=str(tmp_path / name))
        assert found == ["Füße".encode(), b"two\nlines"]


def test_a_field_of_lines_and_of_parquet_is_the_document(tmp_path):
    records = [{"text": "no", "body": f"document {i}"} for i in range(40)]
    raw = "\n".join(json.dumps(record) for record in records).encode()
    put(tmp_path, {"a.jsonl": raw})
    table = pa.table({k: [record[k] for record in records] for k in ("text", "body")})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=7)
    bodies = [record["body"].encode() for record in records]
    for name in ("a.jsonl", "b.parquet"):
        given = {"train_path": str(tmp_path / name)}
        assert texts(tmp_path, **given, field="body") == bodies
        assert texts(tmp_path, **given) == [b"no"] * 40
        with pytest.raises(UserError, match=r"config\.data\.text\.field") as error:
            texts(tmp_path, **given, field="boddy")
        assert "has: text, body" in str(error.value)
    parts = [
        texts(tmp_path, s, tmp_path / "b.parquet", field="body") for s in corpus.SPLITS
    ]
    assert [len(part) for part in parts] == [36, 2, 2]
    assert [text for part in parts for text in part] == bodies


def test_zstd_is_unpacked(tmp_path):
    packed = pa.compress(TEXT, "zstd", asbytes=True)
    put(tmp_path, {"a.txt.zst": packed, "b.txt.zst": packed + packed})
    assert texts(tmp_path, train_path=str(tmp_path / "a.txt.zst")) == [TEXT]
    assert texts(tmp_path, train_path=str(tmp_path / "b.txt.zst")) == [TEXT + TEXT]
    put(tmp_path, {"c.txt.zst": packed[:-5]})
    with pytest.raises(UserError, match="cut off or damaged"):
        texts(tmp_path, train_path=str(tmp_path / "c.txt.zst"))


def tar_of(data):
    header = b"a.txt".ljust(257, b"\0") + b"ustar".ljust(255, b"\0")
    return header + data


REFUSED = {
    "a.txt.zst": (b"\x28\xb5\x2f\xfd" + b"x" * 30, "zstd"),
    "b.txt.gz": (TEXT, "ends in .gz, but is not packed by gzip"),
    "c.txt.gz": (gzip.compress(TEXT)[:-9], "is gzip that is cut off or damaged"),
    "d.txt.bz2": (bz2.compress(TEXT)[:-9], "is bzip2 that is cut off or damaged"),
    "e.tgz": (gzip.compress(tar_of(TEXT)), "tar archive"),
    "f.txt": (b"PAR1" + bytes(60), "Parquet"),
    "g.txt": (b"%PDF-1.7\n%" + bytes(9), "PDF"),
    "h.txt": (b"\x89PNG\r\n\x1a\n" + bytes(9), "an image"),
    "i.txt": (TEXT.decode().encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "j.txt": (bytes(range(256)), "a zero byte at 0"),
    "k.txt": (b"\xff\xfea\0b", "marked as utf-16-le and is not"),
    "l.csv": (b"text,label\nhello,1\n", "is CSV, not plain text"),
    "m.html": (TEXT, "is HTML, not plain text"),
    "n.txt": (b"\n<!DOCTYPE html>\n<html>404</html>", "is a page of HTML"),
    "o.txt": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "p.jsonl": (b'{"content": "a"}\n', r'has no "text" in line 1 \(has: content\)'),
    "q.jsonl": (b'{"text": "a"}\nno\n', "has no JSON in line 2"),
    "r.txt": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "7-Zip"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused(tmp_path, name):
    raw, words = REFUSED[name]
    put(tmp_path, {name: raw})
    with pytest.raises(UserError, match=words) as error:
        texts(tmp_path, train_path=str(tmp_path / name))
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_a_document_of_an_office_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(UserError, match=r"a\.docx' is a document of an office"):
        texts(tmp_path, train_path=str(tmp_path / "a.docx"))


def test_bytes_that_are_not_utf8_are_said(tmp_path, capfd):
    put(tmp_path, {"a.txt": "Füße".encode("latin-1"), "b.txt": b"plain"})
    found = texts(tmp_path, train_path=str(tmp_path / "*.txt"))
    assert found == ["Füße".encode("latin-1"), b"plain"]
    err = capfd.readouterr().err
    assert "1 of 2 documents, 'a.txt' first, are not UTF-8" in err


def splits_of(names, tmp_path):
    """{split: names} of files of these names, given by a glob."""
    root = tmp_path / "d"
    put(root, {name: name.encode() * 9 for name in names})
    found = corpus.scan_text(str(root / "**/*"), {})
    return {split: [d.name for d in ds] for split, ds in found.splits.items()}


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        (["train.txt"], ["val.txt"], []),
        (["Train.txt"], ["dev.txt"], ["TEST.txt"]),
        (["wiki.train.tokens"], ["wiki.valid.tokens"], ["wiki.test.tokens"]),
        (["ts-train.txt"], ["ts-GPT4-valid.txt"], []),
        (["train/a.txt", "train/test.txt"], ["val/a.txt"], ["test/b.txt"]),
        (["Training/a.txt"], [], ["Testing/b.txt"]),
        (["train-00000-of-00002.txt", "train-00001-of-00002.txt"], [], ["test-0.txt"]),
        (["train_set.txt"], ["validation_set.txt"], ["test_data.txt"]),
        (["x_train.txt.gz"], ["x_val.txt.gz"], []),
    ],
)
def test_names_count_as_splits(train, validation, test, tmp_path):
    files = {"train": train, "validation": validation, "test": test}
    expected = {split: names for split, names in files.items() if names}
    assert splits_of([*train, *validation, *test], tmp_path) == expected


def test_names_that_tell_nothing_are_held_out_by_hash(tmp_path):
    names = ["trainer.txt", "contest.txt", "dune.txt", "The Last Train.txt"]
    names += ["src/test_colors.py", "src/colors.py", "train_of_thought_test.txt"]
    found = splits_of(names, tmp_path)
    assert sorted(itertools.chain(*found.values())) == sorted(names)
    assert [len(found[split]) for split in corpus.SPLITS] == [5, 1, 1]


def test_only_training_files_are_held_out_by_hash(tmp_path):
    found = splits_of([f"train-{i}.txt" for i in range(6)], tmp_path)
    assert [len(found[split]) for split in corpus.SPLITS] == [4, 1, 1]


@pytest.mark.parametrize(
    "names",
    [
        ["corpus.txt", "val.txt"],
        ["train.txt", "val.txt", "notes.txt"],
        ["a/x.txt", "b/y.txt", "test/z.txt"],
        ["wiki.train.raw", "wiki.test.raw", "notes.txt"],
    ],
)
def test_names_of_which_some_tell_a_split_are_refused(names, tmp_path):
    with pytest.raises(UserError, match=r"by its name, .* names no split"):
        splits_of(names, tmp_path)


def test_copies_are_in_one_split_alone(tmp_path):
    put(tmp_path / "d", {"train.txt": TEXT, "val.txt": TEXT})
    with pytest.raises(UserError, match=r"same text is 'train.txt' in split 'train'"):
        corpus.scan_text(str(tmp_path / "d/*.txt"), {})
    parts = {s: str(tmp_path / f"d/{f}.txt") for s, f in SHORT.items()}
    with pytest.raises(UserError, match="same text"):
        corpus.scan_text("", parts)
    files = {f"{i}.txt": b"text %d" % (i // 2) for i in range(40)}
    put(tmp_path / "e", files)
    splits = corpus.scan_text(str(tmp_path / "e/*.txt"), {}).splits
    held = {files[d.name] for s in corpus.SPLITS[1:] for d in splits[s]}
    assert held and not held & {files[d.name] for d in splits["train"]}


SHORT = {"train": "train", "validation": "val"}


def test_a_link_to_a_file_that_is_there_counts_once(tmp_path):
    put(tmp_path / "d", {f"{i}.txt": b"text %d" % i for i in range(9)})
    for i in range(9):
        os.symlink(tmp_path / f"d/{i}.txt", tmp_path / f"d/link{i}.txt")
    splits = corpus.scan_text(str(tmp_path / "d/*.txt"), {}).splits
    assert sum(map(len, splits.values())) == 9
    shutil.copytree(tmp_path / "d", tmp_path / "links", symlinks=True)
    links = corpus.scan_text(str(tmp_path / "links/link*.txt"), {}).splits
    assert sum(map(len, links.values())) == 9
