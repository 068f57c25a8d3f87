"""Text of Hugging Face data sets on disk and of webdataset shards."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from normjax.core.errors import UserError
from normjax.data import tar
from normjax.data.shards import samples_of, shards_of
from normjax.data.split_names import named_splits
from normjax.data.tables import KIND, scan_tables

_SHARES = {"train": (0.1, 1.0), "validation": (0.05, 0.1), "test": (0.0, 0.05)}
"""Which part of the hashes of names is which split, where there is one split alone."""


class NamedTexts(NamedTuple):
    """As `corpus.Corpus`: names of splits, and from one of them to (name, text)."""

    name: str
    splits: dict[str, Callable[[], Iterator[tuple[str, bytes]]]]
    fingerprint: str

    def read(self, split: str) -> Iterator[tuple[str, bytes]]:
        """Name and text of every document that is not empty."""
        return ((name, text) for name, text in self.splits[split]() if text)


def scan_hf_text(path: str, field: str) -> NamedTexts:
    """The rows of a text column, see `tables.scan_tables`.

    Raises:
      UserError: as there; no such column of text.
    """
    import pyarrow as pa

    tables = scan_tables(path)
    if tables.columns.get(field) not in (pa.string(), pa.large_string()):
        hint = "config.data.text.field names another"
        raise tables.refuse(f"no text in a column {field!r}; {hint}")

    def rows(split: str) -> Iterator[tuple[str, bytes]]:
        column, number = tables.column(field, split), 0
        for chunk in column.chunks:
            for value in chunk:
                yield f"{split}/{number}", (value.as_py() or "").encode()
                number += 1

    readers = {split: lambda split=split: rows(split) for split in tables.splits}
    return NamedTexts(KIND, _cut(readers), f"{tables.fingerprint}-{field}")


def scan_shard_text(path: str, field: str) -> NamedTexts:
    """KEY.txt of every sample of webdataset shards, else a field of KEY.json.

    Raises:
      UserError: no shard, one that is damaged, a sample without text.
    """
    root, shards = shards_of(path)
    digest = hashlib.sha256(str(root).encode())
    for part, file in shards.items():
        stat = file.stat()
        digest.update(repr((part, stat.st_size, stat.st_mtime_ns)).encode())

    def texts(parts: list[str]) -> Iterator[tuple[str, bytes]]:
        for part in parts:
            inside, _, _ = tar.members(shards[part])
            with tar.opened(inside) as read:
                for key, files in samples_of(inside).items():
                    yield f"{part}/{key}", _text(files, read, field, f"{part}/{key}")

    named = named_splits(list(shards)) or {"train": list(shards)}
    readers = {
        split: lambda parts=parts: texts(parts) for split, parts in named.items()
    }
    return NamedTexts("webdataset", _cut(readers), f"{digest.hexdigest()[:16]}-{field}")


def _text(files: dict[str, str], read: Callable, field: str, where: str) -> bytes:
    if "txt" in files:
        return read(files["txt"])
    held = ", ".join(files)
    if "json" in files:
        try:
            record = json.loads(read(files["json"]))
        except ValueError as error:
            raise UserError(f"webdataset: {where!r} is no JSON ({error})") from None
        if isinstance(record, dict) and isinstance(record.get(field), str):
            return record[field].encode("utf-8", "surrogatepass")
        held = f"json with {', '.join(record)}" if isinstance(record, dict) else held
    hint = "config.data.text.field names a field of .json"
    raise UserError(f"webdataset: no text in {where!r} (has: {held}); {hint}")


def _cut(readers: dict[str, Callable]) -> dict[str, Callable]:
    """Of one split alone: by the hashes of names, as the files of pytext."""
    if len(readers) > 1:
        return readers
    (read,) = readers.values()

    def part(low: float, high: float) -> Iterator[tuple[str, bytes]]:
        return ((n, text) for n, text in read() if low <= _share(n) < high)

    return {
        split: lambda low=low, high=high: part(low, high)
        for split, (low, high) in _SHARES.items()
    }


def _share(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
