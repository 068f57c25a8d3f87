"""Text: documents, splits, rows, tokenizers, against the files read by hand."""

import itertools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import sysconfig
import types
import zipfile

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data import augment, corpus, eval_batches, open_text, train_batches

END = 256
KEYS = {"tokens", "targets", "positions", "mask", "weights"}
LENGTHS = (0, 1, 7, 8, 9, 16, 17, 40, 3)
"""Of documents around rows of eight tokens; the first is empty."""


def write(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def texts():
    """{name: bytes}, with bytes of every value but 0, which no text has."""
    rng = np.random.default_rng(0)
    return {
        f"in/{i}.txt": rng.integers(1, 256, n, np.uint8).tobytes()
        for i, n in enumerate(LENGTHS)
    }


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    for name, data in texts.items():
        write(root, name, data)
    return root


def open_all(folder, split="train", **spec):
    """All of the small texts as one split."""
    spec = {"length": 8, "train_path": str(folder / "in/*.txt")} | spec
    return open_text("text_file", split, spec, data_dir=folder / "cache")


def documents_in(stream):
    """The documents between END tokens of a stream that begins and ends with END."""
    assert stream[0] == stream[-1] == END
    inner, found = list(stream[1:]), []
    while inner:
        cut = inner.index(END)
        found.append(bytes(inner[:cut]))
        inner = inner[cut + 1 :]
    return found


def test_packed_rows_hold_the_documents(folder, texts):
    source = open_all(folder)
    documents = [data for data in texts.values() if data]
    total = sum(len(data) + 1 for data in documents)
    assert (source.num_tokens, source.num_bytes) == (total, sum(LENGTHS))
    assert source.num_documents == len(documents)
    assert (source.vocab_size, source.end_token) == (257, END)
    assert len(source) == source.num_examples == int(np.ceil(total / 8))
    rows = [source[i] for i in range(len(source))]
    tokens = np.concatenate([row["tokens"] for row in rows])
    targets = np.concatenate([row["targets"] for row in rows])
    weights = np.concatenate([row["weights"] for row in rows])
    assert all(row["mask"].all() and row.keys() == KEYS for row in rows)
    assert weights.sum() == weights[:total].sum() == total < len(weights)
    assert documents_in([*tokens[:total], END]) == documents
    assert documents_in([END, *targets[:total]]) == documents
    for row, after in itertools.pairwise(rows):
        shifted = [*row["tokens"][1:], after["tokens"][0]]
        np.testing.assert_array_equal(row["targets"], shifted)
    for row in rows:
        position = None
        for token, got in zip(row["tokens"], row["positions"], strict=True):
            fresh = token == END or position is None
            position = 0 if fresh else position + 1
            assert got == position
    np.testing.assert_array_equal(tokens[total:], tokens[: len(tokens) - total])
    assert rows[-1]["positions"][total % 8] == 0  # the filling is a document, too


def test_padded_rows_hold_one_document_each(folder, texts):
    source = open_all(folder, layout="padded")
    at = 0
    for data in filter(None, texts.values()):
        stream = [END, *data, END]
        for start in range(0, len(stream) - 1, 8):
            row, inputs = source[at], stream[:-1][start : start + 8]
            targets, n = stream[1:][start : start + 8], len(inputs)
            blank = [0] * (8 - n)
            assert row["tokens"].tolist() == inputs + blank
            assert row["targets"].tolist() == targets + blank
            assert row["mask"].tolist() == [True] * n + [False] * (8 - n)
            np.testing.assert_array_equal(row["weights"], row["mask"])
            assert row["positions"].tolist() == list(range(8))
            at += 1
    assert at == len(source)


def test_a_row_may_be_longer_than_the_text(tmp_path):
    path = write(tmp_path, "a.txt", b"abc")
    spec = {"length": 11, "train_path": str(path)}
    source = open_text("text_file", "train", spec, data_dir=tmp_path)
    (row,) = (source[i] for i in range(len(source)))
    cycle = [END, *b"abc"]
    assert row["tokens"].tolist() == (cycle * 3)[:11]
    assert row["targets"].tolist() == (cycle * 3)[1:12]
    assert row["positions"].tolist() == [0, 1, 2, 3] * 2 + [0, 1, 2]
    assert row["weights"].tolist() == [1] * 4 + [0] * 7
    with pytest.raises(IndexError):
        source[1]


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def joined(parts):
    return [
        {key: np.concatenate([b[key] for b in batch]) for key in batch[0]}
        for batch in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_batches_know_neither_processes_nor_where_a_run_began(folder, layout):
    source, settings = open_all(folder, layout=layout), {"batch_size": 4, "seed": 3}
    whole = take(train_batches(source, **settings), 12)
    kinds = {"mask": bool, "weights": np.float32}
    for batch in whole:
        assert batch.keys() == KEYS
        for key, array in batch.items():
            assert array.shape == (4, 8) and array.dtype == kinds.get(key, np.int32)
    tail = train_batches(source, start_step=5, prefetch=0, **settings)
    assert_same(take(tail, 7), whole[5:])
    for count in (2, 4):
        parts = [
            take(
                train_batches(source, process_index=p, process_count=count, **settings),
                12,
            )
            for p in range(count)
        ]
        assert_same(joined(parts), whole)
    epoch = np.concatenate([b["tokens"] for b in whole])[: len(source)]
    rows = [source[i]["tokens"] for i in range(len(source))]
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, rows))
    other = take(train_batches(source, batch_size=4, seed=4), 1)[0]
    assert (other["tokens"] != whole[0]["tokens"]).any()


def test_workers_make_the_same_batches(folder):
    source, settings = open_all(folder), {"batch_size": 4, "seed": 3, "start_step": 1}
    alone = take(train_batches(source, **settings), 3)
    assert_same(take(train_batches(source, workers=2, **settings), 3), alone)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (6, 2), (40, 4)])
def test_evaluation_counts_every_token_once(folder, layout, batch_size, count):
    source = open_all(folder, layout=layout)
    parts = [
        list(
            eval_batches(
                source, batch_size=batch_size, process_index=p, process_count=count
            )
        )
        for p in range(count)
    ]
    batches = joined(parts)
    assert len(batches) == int(np.ceil(len(source) / batch_size))
    stacked = {key: np.concatenate([b[key] for b in batches]) for key in KEYS}
    n = len(source)
    for key, rows in stacked.items():
        np.testing.assert_array_equal(rows[:n], [source[i][key] for i in range(n)])
    assert stacked["mask"][:n].any(1).all() and not stacked["mask"][n:].any()
    assert stacked["weights"].sum() == source.num_tokens
    assert not stacked["weights"][n:].any() and not stacked["tokens"][n:].any()
    counted = stacked["targets"][stacked["weights"] == 1]
    assert (counted == END).sum() == source.num_documents


def test_sources_pickle_small_and_batches_are_fresh(folder):
    source = open_all(folder)
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert_same([pickle.loads(data)[3]], [source[3]])
    for row in (source[0], next(eval_batches(source, batch_size=99))):
        for array in row.values():
            array[...] = 0
    assert source[0]["tokens"].any()


def test_text_takes_no_augmentation(folder):
    flip = augment.build({"flip": True}, train=True)
    with pytest.raises(UserError, match="augment is for images; 'text_file' is text"):
        train_batches(open_all(folder), batch_size=4, seed=0, augment=flip)


# Documents and splits


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


# Tokenizers


class FakeTokenizer:
    """The interface of tokenizers.Tokenizer: one token a word, by its length."""

    @classmethod
    def from_str(cls, content):
        json.loads(content)
        return cls()

    def no_padding(self):
        pass

    def no_truncation(self):
        pass

    def get_vocab(self):
        return {"a": 0, "z": 99_999}

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return types.SimpleNamespace(ids=[len(word) for word in text.split()])

    def decode(self, tokens, skip_special_tokens):
        assert not skip_special_tokens
        return " ".join("x" * token for token in tokens)


class FakePieces:
    """The interface of sentencepiece.SentencePieceProcessor."""

    def __init__(self, model_proto):
        if model_proto == b"bad":
            raise RuntimeError("Internal:\nnot a model")

    def get_piece_size(self):
        return 50

    def encode(self, text):
        return [len(text)]

    def decode(self, tokens):
        return "".join(map(str, tokens))


def test_tokens_of_a_tokenizer_file(tmp_path, monkeypatch):
    fake = types.SimpleNamespace(Tokenizer=FakeTokenizer)
    monkeypatch.setitem(sys.modules, "tokenizers", fake)
    path = write(tmp_path, "a.txt", b"some words here")
    spec = {
        "length": 4,
        "train_path": str(path),
        "tokenizer": str(write(tmp_path, "t.json", b"{}")),
    }
    source = open_text("text_file", "train", spec, data_dir=tmp_path)
    assert (source.vocab_size, source.end_token) == (100_001, 100_000)
    assert source[0]["tokens"].tolist() == [100_000, 4, 5, 4]
    assert source[0]["targets"].tolist() == [4, 5, 4, 100_000]
    assert source.decode(source[0]["tokens"]) == "xxxx xxxxx xxxx"
    write(tmp_path, "t.json", b"not json")
    with pytest.raises(UserError, match="is damaged or of another kind: Expecting"):
        open_text("text_file", "train", spec, data_dir=tmp_path)
    write(tmp_path, "t.json", b"{}")
    write(tmp_path, "a.txt", b"some \xff words")
    with pytest.raises(UserError, match=r"'a.txt' is not UTF-8 .* byte 5"):
        open_text("text_file", "train", spec, data_dir=tmp_path)


def test_tokens_of_a_sentencepiece_file(tmp_path, monkeypatch):
    fake = types.SimpleNamespace(SentencePieceProcessor=FakePieces)
    monkeypatch.setitem(sys.modules, "sentencepiece", fake)
    spec = {
        "length": 2,
        "train_path": str(write(tmp_path, "a.txt", b"seven..")),
        "tokenizer": str(write(tmp_path, "t.model", b"good")),
    }
    source = open_text("text_file", "train", spec, data_dir=tmp_path)
    assert source.vocab_size == 51
    assert source[0]["tokens"].tolist() == [50, 7]
    write(tmp_path, "t.model", b"bad")
    with pytest.raises(UserError, match=r"of another kind: Internal:$"):
        open_text("text_file", "train", spec, data_dir=tmp_path)


def test_a_trained_json_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    text = "to be or not to be, that is the question\n" * 20
    model.train_from_iterator([text], trainer)
    model.save(str(tmp_path / "t.json"))
    roundtrip(tmp_path, "t.json", text, model.encode(text).ids)


def test_a_trained_sentencepiece_model(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = "to be or not to be that is the question " * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text]),
        model_prefix=str(tmp_path / "t"),
        vocab_size=30,
        minloglevel=9,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    roundtrip(tmp_path, "t.model", text.strip(), model.encode(text.strip()))


def roundtrip(tmp_path, tokenizer, text, expected):
    spec = {
        "length": 1000,
        "layout": "padded",
        "train_path": str(write(tmp_path, "a.txt", text.encode())),
        "tokenizer": str(tmp_path / tokenizer),
    }
    source = open_text("text_file", "train", spec, data_dir=tmp_path)
    row = source[0]
    assert row["targets"][row["mask"]].tolist() == [*expected, source.end_token]
    assert source.vocab_size == source.end_token + 1 > max(expected) + 1
    assert source.decode(row["tokens"][row["mask"]]) == text


# Wrong inputs


@pytest.mark.parametrize(
    ("name", "split", "path", "spec", "words"),
    [
        ("pytexts", "train", "", {}, "unknown data set 'pytexts'; did you mean 'pyt"),
        ("lm1b", "train", "", {}, "tfds build lm1b --file_format=array_record"),
        ("pytext", "tset", "", {}, "split of 'pytext': 'tset'; did you mean 'test'"),
        ("pytext", "train", "a.txt", {}, "path name the files of 'text_file', and"),
        ("pytext", "train", "", {"lenght": 3}, "text field 'lenght'; did you mean"),
        ("pytext", "train", "", {"length": 0}, "text.length=0 must be at least 1"),
        ("pytext", "train", "", {"length": "9"}, "text.length='9' must be int"),
        ("pytext", "train", "", {"length": True}, "text.length=True must be int"),
        ("pytext", "train", "", {"layout": "pack"}, "text.layout 'pack'; did you mean"),
        ("pytext", "train", "", {"tokenizer": "byte"}, "unknown tokenizer 'byte' (all"),
        ("pytext", "train", "", {"tokenizer": "no.json"}, "'no.json': No such file"),
        ("pytext", "train", "", {"tokenizer": "t.json"}, "pip install tokenizers"),
        ("pytext", "train", "", {"tokenizer": "t.model"}, "pip install sentencepiece"),
        ("text_file", "train", "", {}, "path or text.train_path, text.validation_path"),
        ("text_file", "train", "a.txt", {"test_path": "a.txt"}, "both given"),
        ("text_file", "train", "none.txt", {}, "'none.txt' matches no file"),
        ("text_file", "train", "*.none", {}, "'*.none' matches no file"),
        ("text_file", "train", "empty.txt", {}, "'empty.txt' is empty"),
        ("text_file", "validation", "short.txt", {}, "'text_file' holds no text"),
        ("text_file", "train", ".", {}, "'.' is a folder; name its files by a glob"),
        ("text_file", "train", "bad.zip", {}, "'bad.zip' is no readable zip"),
        ("text_file", "train", "torn.zip", {}, "cannot read 'b.txt' of"),
        ("text_file", "test", "", {"train_path": "a.txt"}, "'test' (allowed: train)"),
        (
            *("text_file", "train", ""),
            {"train_path": "*.txt", "test_path": "a.txt"},
            "'a.txt' is in split 'train' and in split 'test'",
        ),
    ],
)
def test_wrong_inputs_are_named(name, split, path, spec, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("tokenizers", "sentencepiece"):
        monkeypatch.setitem(sys.modules, package, None)
    files = {"a.txt": b"abc", "empty.txt": b"", "short.txt": b"ab", "bad.zip": b"no"}
    for file, data in (files | {"t.json": b"{}", "t.model": b""}).items():
        write(tmp_path, file, data)
    with zipfile.ZipFile("torn.zip", "w") as archive:
        archive.writestr("b.txt", b"the right text")
    torn = pathlib.Path("torn.zip").read_bytes().replace(b"right", b"wrong")
    write(tmp_path, "torn.zip", torn)
    with pytest.raises(UserError) as error:
        open_text(name, split, spec, data_dir=tmp_path / "cache", path=path)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    assert not list((tmp_path / "cache").rglob("incomplete*"))


def test_own_text_is_opened_without_heavy_imports(tmp_path):
    write(tmp_path, "a.txt", "Füße\n".encode() * 9)
    code = """
import sys
import normjax.data
spec = {"train_path": sys.argv[1] + "/*.txt"}
normjax.data.open_text("text_file", "train", spec, data_dir=sys.argv[1] + "/cache")[0]
heavy = ("tensorflow_datasets", "tokenizers", "sentencepiece", "grain", "jax")
assert not [m for m in heavy if m in sys.modules]
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
