"""Text: documents, splits, rows, tokenizers, against the files read by hand."""

import itertools
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.data import augment, eval_batches, open_text, train_batches

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
