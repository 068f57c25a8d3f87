"""Text as rows of tokens: packed documents, or one document a row."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of
from normjax.data import prepared
from normjax.data.augment import Transform
from normjax.data.corpus import SPLITS, Corpus, scan_pytext, scan_text
from normjax.data.rows import Batch
from normjax.data.text_sets import NamedTexts, scan_hf_text, scan_shard_text
from normjax.data.vocabulary import Tokenizer, open_tokenizer

SETS: Mapping[str, Callable[[str, str], NamedTexts]] = {
    "hf_dataset": scan_hf_text,
    "webdataset": scan_shard_text,
}
"""Further sets of people's own, and what finds the texts at a path."""

EMBEDDED = ("pytext", "text_file", *SETS)
"""Text sets that need no TFDS preparation by the user."""

LAYOUTS = ("packed", "padded")

_FORMAT = "3"  # of the prepared tokens


@dataclasses.dataclass(frozen=True)
class Fields:
    """What a config may say about text.

    Attributes:
      length: tokens of a row.
      layout: "packed" or "padded", see `TextSource`.
      tokenizer: "bytes", a .json file of `tokenizers` or a .model of sentencepiece.
      field: that holds a document, of lines of JSON, of Parquet and hf_dataset, of
        .json in shards.
      train_path, validation_path, test_path: of text_file, instead of the one path
        that is split.
    """

    length: int = 256
    layout: str = "packed"
    tokenizer: str = "bytes"
    field: str = "text"
    train_path: str = ""
    validation_path: str = ""
    test_path: str = ""


class TextSource:
    """One split of a text set as rows of L tokens. Threads may share it; it pickles.

    A document d_1 ... d_n is the inputs END d_1 ... d_n and the targets d_1 ... d_n
    END: END is a token of its own, `end_token`, never inside a document. So every token
    of the text is a target exactly once, and END once for every document; generation
    starts after END. The rows are

    - packed: the documents one after the other, cut every L tokens. The last row is
      filled from the start of the text, with weight 0.
    - padded: one document a row, longer ones cut every L tokens. Behind the end of the
      document tokens and targets are 0 and mask is False.

    They are batches of {"tokens": int32 [B, L], "targets": int32 [B, L],
    "positions": int32 [B, L], "mask": bool [B, L], "weights": float32 [B, L]}:

    - positions count from 0, and again from 0 where a document starts.
    - mask is False at padding, and in rows past the last example.
    - weights are 1 where the target counts, else 0: those of `eval_batches` add up to
      `num_tokens`.

    Attributes:
      name: data set.  split: its split.  layout: "packed" or "padded".  length: L.
      vocab_size: tokens, END among them; 257 for bytes.  end_token: the last, END.
      num_examples: rows.  num_documents: documents that are not empty.
      num_tokens: targets that count.  num_bytes: of the text; nats a byte are the
        summed loss of a pass over `num_bytes`.
      fingerprint: of the text; that of pytext names the version of Python.
      digest: of the tokens.

    Example:
      >>> from normjax import data
      >>> fields = {"length": 8}
      >>> source = data.open_text("text_file", "train", fields, path=data.__file__)
      >>> isinstance(source, data.TextSource)
      True
      >>> batch = next(data.train_batches(source, batch_size=4, seed=0))
      >>> sorted(batch), batch["tokens"].shape
      (['mask', 'positions', 'targets', 'tokens', 'weights'], (4, 8))
      >>> source.vocab_size, source.end_token, source.decode([111, 110, 101])
      (257, 256, 'one')
    """

    def __init__(self, name, split, folder, *, fields, tokenizer, fingerprint):
        """Reads what `_write` left in `folder`.

        Args:
          folder: the prepared tokens.  fields: `Fields`.  tokenizer: of the tokens.
        """
        self.name, self.split, self.fingerprint = name, split, fingerprint
        self.length, self.layout = fields.length, fields.layout
        self.end_token, self.vocab_size = tokenizer.size, tokenizer.size + 1
        self._tokenizer_name = fields.tokenizer
        self._folder = folder
        with prepared.intact(folder):
            info = json.loads((folder / "info.json").read_text())
            self.num_bytes, self.digest = info["num_bytes"], info["digest"]
            self._map()
        self.num_documents = len(self._starts) - 1
        self.num_tokens = int(self._starts[-1])
        chunks = -(-np.diff(self._starts) // self.length)
        self._first_row = np.concatenate([[0], np.cumsum(chunks)])
        rows = -(-self.num_tokens // self.length)
        self.num_examples = rows if self.layout == "packed" else int(chunks.sum())

    num_uniforms = 0

    def __len__(self) -> int:
        return self.num_examples

    def __getstate__(self):
        mapped = ("_tokens", "_starts")
        return {key: value for key, value in vars(self).items() if key not in mapped}

    def __setstate__(self, state):
        vars(self).update(state)
        self._map()

    def _map(self) -> None:
        """The stream END d_1 ... d_n END ... END, and where documents start in it."""
        dtype = _dtype(self.vocab_size)
        self._tokens = np.memmap(self._folder / "tokens.bin", dtype, "r")
        self._starts = np.load(self._folder / "starts.npy")
        if len(self._tokens) != self._starts[-1] + 1:
            raise ValueError(f"{len(self._tokens)} of {self._starts[-1] + 1} tokens")

    def rows(self, transform: Transform | None = None) -> "TextSource":
        """Itself: it makes its rows.

        Raises:
          UserError: a `transform`, which is for images.
        """
        if transform is not None:
            raise UserError(f"augment is for images; {self.name!r} is text")
        return self

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`: the arrays of a batch without their first axis."""
        if not -self.num_examples <= index < self.num_examples:
            raise IndexError(f"{index} is outside {self.num_examples} rows")
        batch = self.load(np.array([index % self.num_examples]), np.empty((1, 0)))
        return {name: rows[0] for name, rows in batch.items()}

    def blank(self, count: int) -> Batch:
        """`count` rows of padding."""
        zeros = np.zeros((count, self.length), np.int32)
        return {
            "tokens": zeros,
            "targets": zeros.copy(),
            "positions": zeros + np.arange(self.length, dtype=np.int32),
            "mask": zeros.astype(bool),
            "weights": zeros.astype(np.float32),
        }

    def load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        """Rows `indices`, int64 [B]; nothing about them is random."""
        del u
        column = np.arange(self.length)
        if self.layout == "packed":
            at = indices[:, None] * self.length + column
            counts, at = at < self.num_tokens, at % self.num_tokens
            mask = np.ones_like(counts)
        else:
            document = np.searchsorted(self._first_row, indices, side="right") - 1
            chunk = indices - self._first_row[document]
            at = (self._starts[document] + chunk * self.length)[:, None] + column
            counts = mask = at < self._starts[document + 1, None]
            at = np.where(mask, at, 0)
        tokens = np.where(mask, self._tokens[at], 0).astype(np.int32)
        starts = np.where((tokens == self.end_token) & mask, column, 0)
        return {
            "tokens": tokens,
            "targets": np.where(mask, self._tokens[at + 1], 0).astype(np.int32),
            "positions": (column - np.maximum.accumulate(starts, 1)).astype(np.int32),
            "mask": mask.copy(),
            "weights": counts.astype(np.float32),
        }

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; END becomes an empty line."""
        tokenizer, pieces = open_tokenizer(self._tokenizer_name), [[]]
        for token in map(int, tokens):
            if token == self.end_token:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return "\n\n".join(tokenizer.decode(piece) for piece in pieces if piece)


def open_text(
    name: str,
    split: str,
    spec: Mapping | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
    path: str | os.PathLike | None = None,
) -> TextSource:
    """Open one split of a text set; its tokens are prepared first, once.

    Args:
      name: "pytext" (the standard library's source), "text_file" (the user's own, see
        `normjax.data.corpus.scan_text`), a key of `SETS`, or a TFDS name such as
        "lm1b", prepared as array_record before; nothing is ever downloaded.
      split: "train", "validation" or "test"; of TFDS sets what they have.
      spec: values of `Fields`; fields left out keep their defaults.
      data_dir: where prepared sets lie. Default: for embedded sets the environment
        variable NORMJAX_DATA_DIR, else ~/.cache/normjax; for others TFDS's own.
      path: the file, zip or glob of "text_file"; of a set of `SETS`.

    Raises:
      UserError: unknown name, split or field, unreadable file or tokenizer, no text.

    Example:
      >>> from normjax import data
      >>> source = data.open_text("text_file", "train", path=data.__file__)
      >>> source.layout, source.length
      ('packed', 256)
    """
    fields = _checked({} if spec is None else spec)
    parts = {part: getattr(fields, f"{part}_path") for part in SPLITS}
    path = os.fspath(path or "")
    at_path = path and name not in ("text_file", *SETS)
    if at_path or (name != "text_file" and any(parts.values())):
        rule = (
            "path and text.*_path name the files of 'text_file', and path those of "
            f"{' and '.join(map(repr, SETS))}"
        )
        raise UserError(f"data set {name!r} with a path: {rule}")
    tokenizer = open_tokenizer(fields.tokenizer)
    if name in EMBEDDED:
        corpus = _corpus(name, path, parts, fields.field)
        documents, fingerprint = _documents(corpus, split), corpus.fingerprint
    else:
        documents, fingerprint = _tfds_documents(name, split, data_dir)
    cache = prepared.cache_dir(data_dir if name in EMBEDDED else None)
    place = (_FORMAT, name, fingerprint, tokenizer.key, split)
    folder = cache.joinpath("text", *(re.sub(r"[^\w.-]", "_", part) for part in place))
    what = f"split {split!r} of {name!r}"
    prepared.prepare(folder, lambda made: _write(made, documents, tokenizer, what))
    return TextSource(
        name,
        split,
        folder,
        fields=fields,
        tokenizer=tokenizer,
        fingerprint=fingerprint,
    )


def _checked(spec: Mapping) -> Fields:
    values: dict[str, Any] = {**spec}
    defaults = dataclasses.asdict(Fields())
    for name, value in values.items():
        if name not in defaults:
            raise UserError(one_of("text field", name, defaults))
        if not isinstance(value, type(defaults[name])) or isinstance(value, bool):
            kind = type(defaults[name]).__name__
            raise UserError(f"text.{name}={value!r} must be {kind}")
    fields = Fields(**values)
    if fields.length < 1:
        raise UserError(f"text.length={fields.length} must be at least 1")
    if fields.layout not in LAYOUTS:
        raise UserError(one_of("text.layout", fields.layout, LAYOUTS))
    return fields


def _corpus(
    name: str, path: str, parts: dict[str, str], field: str
) -> Corpus | NamedTexts:
    if name == "pytext":
        return scan_pytext()
    if name == "text_file":
        return scan_text(path, parts, field)
    if not path:
        raise UserError(f"data set {name!r} needs a path")
    return SETS[name](path, field)


def _documents(corpus: Corpus | NamedTexts, split: str) -> Iterator[tuple[str, bytes]]:
    if split not in corpus.splits:
        raise UserError(one_of(f"split of {corpus.name!r}:", split, corpus.splits))
    return corpus.read(split)


def _tfds_documents(name: str, split: str, data_dir: str | os.PathLike | None):
    """The texts of a prepared TFDS set, and what tells one preparation from another."""
    import tensorflow_datasets as tfds

    builder = prepared.open_tfds(name, data_dir, EMBEDDED, such_as="lm1b")
    features = builder.info.features
    texts = [k for k, f in features.items() if isinstance(f, tfds.features.Text)]
    if "text" not in texts and len(texts) != 1:
        raise UserError(f"{name!r} is no text set (has: {', '.join(features)})")
    key = "text" if "text" in texts else texts[0]
    try:
        builder.info.splits[split]
    except (KeyError, ValueError):
        message = one_of(f"split of {name!r}:", split, builder.info.splits)
        raise UserError(message) from None
    records = builder.as_data_source(split)

    def documents() -> Iterator[tuple[str, bytes]]:
        for index in range(len(records)):
            if text := records[index][key]:
                yield f"example {index}", text

    return documents(), prepared.preparation_key(builder, split)


def _dtype(vocab_size: int) -> Any:
    return np.uint16 if vocab_size <= 2**16 else np.int32


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _write(
    folder: pathlib.Path,
    documents: Iterable[tuple[str, bytes]],
    tokenizer: Tokenizer,
    what: str,
) -> None:
    """Leave the tokens of `documents` in `folder`."""
    end, dtype = tokenizer.size, _dtype(tokenizer.size + 1)
    starts, num_bytes, digest = [0], 0, hashlib.sha256()
    foreign: list[str] = []
    with (folder / "tokens.bin").open("wb") as file:
        for name, text in documents:
            try:
                tokens = tokenizer.encode(text)
            except UnicodeDecodeError as error:
                reason = f"is not UTF-8 ({error.reason} at byte {error.start})"
                hint = "the tokenizer 'bytes' takes any text"
                raise UserError(f"{what}: {name!r} {reason}; {hint}") from None
            foreign += [] if _is_utf8(text) else [name]
            row = np.concatenate([[end], tokens]).astype(dtype)
            row.tofile(file)
            digest.update(row.tobytes())
            starts.append(starts[-1] + 1 + len(tokens))
            num_bytes += len(text)
        np.array([end], dtype).tofile(file)
    if len(starts) == 1:
        raise UserError(f"{what} holds no text")
    np.save(folder / "starts.npy", np.array(starts, np.int64))
    info = {"num_bytes": num_bytes, "digest": digest.hexdigest()[:16]}
    (folder / "info.json").write_text(json.dumps(info))
    if foreign:
        which = f"{len(foreign)} of {len(starts) - 1} documents, {foreign[0]!r} first,"
        note = f"{what}: {which} are not UTF-8; their bytes are learned as they are"
        print(note, file=sys.stderr)
