"""Hugging Face data sets on disk, Arrow and Parquet files: rows of named columns.

What `datasets` writes by save_to_disk, what its hub and `to_parquet` hold, read by
pyarrow alone.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of
from normjax.core.paths import local_path
from normjax.data.split_names import WORDS, named_splits

KIND = "hf_dataset"
ENDINGS = (".arrow", ".parquet")
EXPECTED = (
    "expected a folder that datasets wrote by save_to_disk, or .parquet or .arrow files"
)

_SAVED, _SPLITS, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Tables:
    """The files of every split, of the same columns.

    Attributes:
      path: absolute, of all.  splits: files by split, in order.
      columns: type of each in Arrow.  features: what `datasets` says of each, if it
        does.
      fingerprint: changes with names, sizes and times of the files.
    """

    path: pathlib.Path
    splits: dict[str, list[pathlib.Path]]
    columns: dict[str, Any]
    features: dict[str, Any]
    fingerprint: str

    def refuse(self, reason: str) -> UserError:
        """One line that names the data set and its columns."""
        held = ", ".join(self.columns)
        return UserError(f"{KIND} {str(self.path)!r}: {reason} (columns: {held})")

    def column(self, name: str, split: str) -> Any:
        """A whole column of a split, a chunked array of Arrow."""
        import pyarrow as pa

        tables = [_opened(file) for file in self.splits[split]]
        parts = [
            t.read([name]).column(0) if hasattr(t, "read") else t.column(name)
            for t in tables
        ]
        chunks = [chunk for part in parts for chunk in part.chunks]
        return pa.chunked_array(chunks, parts[0].type)


def scan_tables(path: str | os.PathLike) -> Tables:
    """List the files of a data set; see `EXPECTED`.

    Raises:
      UserError: no such path, none of them in it, files of other columns.
    """
    root = local_path(f"{KIND}: path", path).expanduser().absolute()
    if not root.exists():
        raise UserError(f"{KIND}: no such path {str(root)!r}; {EXPECTED}")
    splits = _splits_of(root)
    digest, schemas = hashlib.sha256(str(root).encode()), {}
    for files in splits.values():
        for file in files:
            try:
                stat = file.stat()
                schemas[file] = _schema(_opened(file))
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"{KIND}: cannot read {str(file)!r} ({reason})"
                ) from None
            content = str(file.relative_to(root.parent)), stat.st_size, stat.st_mtime_ns
            digest.update(repr(content).encode())
    first, schema = next(iter(schemas.items()))
    for file, other in schemas.items():
        if other.names != schema.names:
            raise UserError(
                f"{KIND}: {first.name!r} has the columns {', '.join(schema.names)}, "
                f"{file.name!r} {', '.join(other.names)}: name the files of one set"
            )
    columns = dict(zip(schema.names, schema.types, strict=True))
    features = _features(schema, first)
    return Tables(root, splits, columns, features, digest.hexdigest()[:16])


def _splits_of(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    if root.is_file():
        if not root.name.endswith(ENDINGS):
            raise UserError(f"{KIND}: {str(root)!r} is another file; {EXPECTED}")
        return {"train": [root]}
    if (root / _SPLITS).is_file():
        names = _json(root / _SPLITS).get("splits", [])
        return {_called(name): _saved(root / name) for name in names}
    if (root / _SAVED).is_file():
        return {"train": _saved(root)}
    found = [f for f in sorted(root.rglob("*")) if f.name.endswith(ENDINGS)]
    # What `datasets` keeps beside the data of maps and filters.
    found = [f for f in found if not f.name.startswith((".", "cache-", "tmp"))]
    if not found:
        raise UserError(f"{KIND}: no data in {str(root)!r}; {EXPECTED}")
    if len({file.suffix for file in found}) > 1:
        raise UserError(f"{KIND}: {str(root)!r} holds .arrow and .parquet: name one")
    by_name = {file.relative_to(root).as_posix(): file for file in found}
    named = named_splits(list(by_name)) or {"train": list(by_name)}
    return {split: [by_name[n] for n in names] for split, names in named.items()}


def _called(split: str) -> str:
    """Our name of a split of theirs, which may be one that we do not know."""
    return WORDS.get(split.lower(), split)


def _saved(folder: pathlib.Path) -> list[pathlib.Path]:
    state = _json(folder / _SAVED)
    if state.get("_indices_data_files"):
        raise UserError(
            f"{KIND}: {str(folder)!r} holds an order beside its rows, as old versions "
            "of datasets wrote: save it again by flatten_indices().save_to_disk()"
        )
    return [folder / part["filename"] for part in state.get("_data_files", [])]


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{KIND}: cannot read {str(path)!r} ({error})") from None


def _opened(file: pathlib.Path) -> Any:
    """A table whose columns lie in the file, or a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        return pq.ParquetFile(file)
    mapped = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:  # the other of Arrow's two formats
        return pa.ipc.open_file(mapped).read_all()


def _schema(table: Any) -> Any:
    return getattr(table, "schema_arrow", None) or table.schema


def _features(schema: Any, file: pathlib.Path) -> dict[str, Any]:
    known = (schema.metadata or {}).get(b"huggingface")
    if known:
        return json.loads(known).get("info", {}).get("features") or {}
    info = file.parent / _INFO
    return (_json(info).get("features") or {}) if info.is_file() else {}


class Rows:
    """Single rows of a column, which threads may share."""

    def __init__(self, files: Sequence[pathlib.Path], column: str):
        self._column, self._lock = column, threading.Lock()
        self._tables = [_opened(file) for file in files]
        # Of a Parquet file one row group at a time is unpacked.
        groups = [
            (table, group, rows)
            for table in self._tables
            for group, rows in enumerate(_group_sizes(table))
        ]
        self._groups = [(table, group) for table, group, _ in groups]
        self._ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
        self._kept: tuple[int, Any] = -1, None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Any:
        number = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        with self._lock:
            if self._kept[0] != number:
                table, group = self._groups[number]
                self._kept = number, _group(table, group, self._column)
            column = self._kept[1]
        return column[row - start].as_py()


def _group_sizes(table: Any) -> list[int]:
    if not hasattr(table, "num_row_groups"):
        return [table.num_rows]
    found = table.metadata
    return [found.row_group(i).num_rows for i in range(table.num_row_groups)]


def _group(table: Any, group: int, column: str) -> Any:
    if not hasattr(table, "num_row_groups"):
        return table.column(column)
    return table.read_row_group(group, [column]).column(0)


def choose(tables: Tables, what: str, given: str, fits: Sequence[str], usual) -> str:
    """The column that is named, or the only one that fits, or the usual of several.

    Raises:
      UserError: there is none, or several.
    """
    if given:
        if given not in tables.columns:
            raise UserError(one_of(f"column of {KIND}", given, tables.columns))
        return given
    likely = [name for name in usual if name in fits] or list(fits)
    if len(likely) == 1 or (likely and likely[0] == usual[0]):
        return likely[0]
    several = f"several may hold the {what}" if likely else f"none holds the {what}"
    raise tables.refuse(several)


Reader = Callable[[str], bytes]


@contextlib.contextmanager
def read_images(splits: dict[str, list[pathlib.Path]], column: str) -> Iterator[Reader]:
    """From "split/row" to the encoded image in that row."""
    rows: dict[str, Rows] = {}

    def read(name: str) -> bytes:
        split, _, row = name.rpartition("/")
        if split not in rows:
            rows[split] = Rows(splits[split], column)
        value = rows[split][int(row)]
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                return pathlib.Path(value["path"]).read_bytes()
            value = value.get("bytes")
        return value or b""

    yield read
