"""Tokens of tokenizer files: those of the libraries, and what stands in for them."""

import json
import sys
import types

import pytest

from normjax.core.errors import UserError
from normjax.data import open_text
from tests.data.text_test import write


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
