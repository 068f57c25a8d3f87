"""Which documents of a text belong to which split."""

import itertools
import json
import os
import pathlib
import shutil
import sys
import sysconfig
import zipfile

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data import corpus, open_text
from tests.data.text_test import END, documents_in, write


def names(found):
    return {split: [d.name for d in ds] for split, ds in found.splits.items()}


def test_pytext_is_the_library_of_this_python(tmp_path):
    parts = [open_text("pytext", s, data_dir=tmp_path) for s in corpus.SPLITS]
    version = ".".join(map(str, sys.version_info[:3]))
    assert all(f"-{version}-" in part.fingerprint for part in parts)
    assert len({part.fingerprint for part in parts}) == 1
    size = sum(part.num_bytes for part in parts)
    assert size > 2**21 and parts[0].num_bytes > 0.8 * size
    found = names(corpus.scan_pytext())
    files = [name for split in found.values() for name in split]
    assert len(set(files)) == len(files) and "os.py" in files
    assert not [f for f in files if {"test", "site-packages"} & {*f.split("/")}]
    test = parts[2]
    stream = np.concatenate([test[i]["tokens"] for i in range(len(test))])
    stream = [*stream[: test.num_tokens].tolist(), END]
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    expected = [(library / name).read_bytes() for name in sorted(found["test"])]
    assert documents_in(stream) == [data for data in expected if data]
    for data in expected:
        data.decode("utf-8")


def test_a_library_file_keeps_its_split(tmp_path, monkeypatch):
    for i in range(400):
        write(tmp_path, f"a/{'pkg/' * (i % 3)}m{i}.py", b"x = %d\n" % i)
    skipped = ("test/t.py", "site-packages/s.py", "_sysconfigdata_x.py", "notes.txt")
    for name in skipped:
        write(tmp_path / "a", name, b"no")
    first = names(corpus.scan_pytext(tmp_path / "a"))
    shares = [len(first[split]) / 400 for split in corpus.SPLITS]
    assert sum(shares) == 1
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.03)
    walk = os.walk

    def backwards(*args):
        for top, folders, files in walk(*args):
            folders.sort(reverse=True)
            yield top, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert names(corpus.scan_pytext(tmp_path / "a")) == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in list((tmp_path / "b").rglob("*9.py")):
        path.unlink()
    fewer = names(corpus.scan_pytext(tmp_path / "b"))
    for split in corpus.SPLITS:
        kept = [name for name in first[split] if not name.endswith("9.py")]
        assert fewer[split] == kept
    one = corpus.scan_pytext(tmp_path / "a").fingerprint
    assert one != corpus.scan_pytext(tmp_path / "b").fingerprint
    write(tmp_path, "a/m0.py", b"x = 7\n")
    assert one != corpus.scan_pytext(tmp_path / "a").fingerprint
    with pytest.raises(UserError, match="too few Python sources"):
        corpus.scan_pytext(tmp_path / "nothing")


def split_texts(path, tmp_path):
    """{split: documents} of text_file, from its padded rows."""
    found = {}
    for split in corpus.SPLITS:
        spec = {"length": 3000, "layout": "padded"}
        source = open_text("text_file", split, spec, data_dir=tmp_path / "c", path=path)
        rows = [source[i] for i in range(len(source))]
        found[split] = [bytes(r["tokens"][r["mask"]][1:].tolist()) for r in rows]
    return found


def test_documents_are_held_out_by_name_wherever_they_lie(tmp_path):
    texts = {f"{'ab'[i % 2]}/{i}.txt": f"text {i}".encode() for i in range(60)}
    for name, data in texts.items():
        write(tmp_path / "one", name, data)
    found = split_texts(str(tmp_path / "one/**/*.txt"), tmp_path)
    assert [len(found[split]) for split in corpus.SPLITS] == [54, 3, 3]
    assert sorted(itertools.chain(*found.values())) == sorted(texts.values())
    shutil.copytree(tmp_path / "one", tmp_path / "two [x]")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in sorted(texts, reverse=True):
            archive.writestr(name, texts[name])
        archive.writestr("__MACOSX/a/0.txt", "no")
        archive.writestr("a/.hidden", "no")
    assert split_texts(tmp_path / "z.zip", tmp_path) == found
    moved = glob_of(tmp_path / "two [x]") + "/**/*.txt"
    assert split_texts(moved, tmp_path) == found
    few = split_texts(str(tmp_path / "one/a/1*.txt"), tmp_path)
    assert [len(few[split]) for split in corpus.SPLITS] == [3, 1, 1]


def glob_of(path):
    return str(path).replace("[", "[[]")


def test_a_lone_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    lines = [b"%d" % i * (i % 7 + 1) + b"\n" for i in range(90)]
    text = b"".join(lines)
    write(tmp_path, "novel [1].txt", text)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "novel [1].txt", "novel [1].txt"):
        found = split_texts(path, tmp_path)
        parts = [b"".join(found[split]) for split in corpus.SPLITS]
        assert b"".join(parts) == text
        assert all(part.endswith(b"\n") for part in parts)
        sizes = [len(part) / len(text) for part in parts]
        np.testing.assert_allclose(sizes, [0.9, 0.05, 0.05], atol=0.03)


def test_a_lone_line_is_cut_between_characters():
    for shift in range(3):
        text = ("a" * shift + "ö€" * 50).encode()
        parts = [corpus.part_of(text, split) for split in corpus.SPLITS]
        assert b"".join(parts) == text
        for part in parts:
            assert part.decode("utf-8")


def test_a_changed_file_is_read_again(tmp_path):
    spec = {"train_path": str(write(tmp_path, "a.txt", b"abc"))}
    first = open_text("text_file", "train", spec, data_dir=tmp_path)
    again = open_text("text_file", "train", spec, data_dir=tmp_path)
    write(tmp_path, "a.txt", b"abcd")
    second = open_text("text_file", "train", spec, data_dir=tmp_path)
    assert first.fingerprint == again.fingerprint != second.fingerprint
    assert (first.num_bytes, second.num_bytes) == (3, 4)


def test_a_tfds_set_is_read_from_its_files(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from normjax.data import builders

    texts = ["one sentence", "", "ünother"]

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "id": tfds.features.Scalar(np.int32),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                disable_shuffling=True,
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager):
            return {"train": enumerate({"text": t, "id": 0} for t in texts)}

        def _generate_examples(self):
            raise NotImplementedError

    builders.prepare(Tiny, tmp_path / "tiny/1.0.0")
    monkeypatch.setenv("NORMJAX_DATA_DIR", str(tmp_path / "cache"))
    source = open_text("tiny", "train", {"length": 40}, data_dir=tmp_path)
    slim = open_text("tiny", "train[:1]", {"length": 40}, data_dir=tmp_path)
    stream = [*source[0]["tokens"][: source.num_tokens].tolist(), END]
    assert documents_in(stream) == [t.encode() for t in texts if t]
    assert slim.num_documents == 1
    with pytest.raises(UserError, match=r"split of 'tiny': 'test'.*allowed: train"):
        open_text("tiny", "test", data_dir=tmp_path)
    info = tmp_path / "tiny/1.0.0/features.json"
    held = json.loads(info.read_text())
    del held["featuresDict"]["features"]["text"]
    info.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"'tiny' is no text set \(has: id\)"):
        open_text("tiny", "train", data_dir=tmp_path)
