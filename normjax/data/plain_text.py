"""From the bytes of a file to text: unpacked, in UTF-8, and refused where it is none.

What a file is its first bytes tell, and where these may be text its name. What a name
says and the bytes deny is refused, too: a download that failed has the right name.
"""

import bz2
import codecs
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

TABLES = (".csv", ".tsv", ".json", ".ipynb", ".html", ".htm", ".xhtml", ".xml", ".rtf")
"""Endings of markup, which is more than text."""

LINES = (".jsonl", ".ndjson")
"""Endings of files with one JSON object a line, of which a field is a document."""

ROWS = ".parquet"
"""Ending of tables, of which a column holds a document a row."""

BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""What packed files raise that are cut off or damaged."""


class NotText(ValueError):
    """A file is no text; the message says what it is."""


class _Packing(NamedTuple):
    name: str
    magic: bytes
    unpack: Callable[[bytes], bytes]


def _zstd(raw: bytes) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream:
        return stream.read()


PACKINGS = {
    ".gz": _Packing("gzip", b"\x1f\x8b", gzip.decompress),
    ".bz2": _Packing("bzip2", b"BZh", bz2.decompress),
    ".xz": _Packing("xz", b"\xfd7zXZ\0", lzma.decompress),
    ".lzma": _Packing("lzma", b"\x5d\0\0", lzma.decompress),
    ".zst": _Packing("zstd", b"\x28\xb5\x2f\xfd", _zstd),
}
"""Ending -> a packing of one file."""

_KINDS = {
    b"PK\x03\x04": "a zip inside of something",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\x1f\x9d": "compressed by compress",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"PAR1": "a Parquet file, which ends in .parquet",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"{\\rtf": "an RTF document",
    b"SQLite format 3": "a database",
    b"\x93NUMPY": "an array of NumPy",
    b"\x7fELF": "a program",
    b"version https://git-lfs": "a pointer of Git LFS, not the file: run git lfs pull",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def ending(name: str) -> str:
    """The last ending of a name, in small letters."""
    dot = name.rpartition("/")[2].rpartition(".")
    return f".{dot[2].lower()}" if dot[0] else ""


def plain_text(raw: bytes, name: str) -> tuple[bytes, str]:
    """The text in a file that holds `raw`, and the file's name without its packings.

    gzip, bzip2, xz and zstd are unpacked, UTF-16 and UTF-32 with a byte order mark
    become UTF-8, and a mark is left out. Other bytes, and Parquet, stay as they are.

    Raises:
      NotText: it is something else, or damaged.
    """
    while raw:
        named = PACKINGS.get(ending(name))
        found = next((p for p in PACKINGS.values() if raw.startswith(p.magic)), None)
        if named and found is not named:
            raise NotText(f"ends in {ending(name)}, but is not packed by {named.name}")
        if found is None:
            break
        try:
            raw = found.unpack(raw)
        except NotText:
            raise
        except BROKEN as error:
            raise NotText(
                f"is {found.name} that is cut off or damaged ({error})"
            ) from None
        name = name[: -len(ending(name))] if named else name
    if ending(name) == ROWS and raw.startswith(b"PAR1"):
        return raw, name
    _refuse(raw, name)
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            try:
                return raw[len(mark) :].decode(encoding).encode(), name
            except UnicodeDecodeError as error:
                where = f"{error.reason} at byte {error.start + len(mark)}"
                raise NotText(f"is marked as {encoding} and is not ({where})") from None
    if b"\0" in raw:
        where = f"a zero byte at {raw.index(0)}"
        raise NotText(f"is no text, or UTF-16 without a byte order mark ({where})")
    return raw, name


def _refuse(raw: bytes, name: str) -> None:
    """Raises NotText for what is known not to be text."""
    kind = next((k for magic, k in _KINDS.items() if raw.startswith(magic)), None)
    if raw[257:262] == b"ustar":
        kind = "a tar archive: unpack it"
    if kind:
        raise NotText(f"is no text but {kind}")
    if ending(name) in TABLES:
        hint = "take the text out, or rename it to .txt to learn it with its markup"
        raise NotText(f"is {ending(name)[1:].upper()}, not plain text: {hint}")
    start = raw[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise NotText("is a page of HTML, not its text (a download that failed?)")


def documents_of(text: bytes, name: str, field: str = "text") -> Iterator[bytes]:
    """The documents: a field of each line of JSON or row of Parquet, else all of it.

    Raises:
      NotText: a line that is no JSON object with such a field, a table without it.
    """
    if ending(name) == ROWS:
        yield from _rows(text, field)
        return
    if ending(name) not in LINES:
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise NotText(f"has no JSON in line {number} ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            held = ", ".join(record) if isinstance(record, dict) else "no object"
            hint = "config.data.text.field names another"
            raise NotText(f'has no "{field}" in line {number} (has: {held}); {hint}')
        yield record[field].encode("utf-8", "surrogatepass")


def _rows(raw: bytes, field: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(raw))
        schema = file.schema_arrow
        kind = schema.field(field).type if field in schema.names else None
        if kind is None or not (
            pa.types.is_string(kind) or pa.types.is_large_string(kind)
        ):
            held, hint = ", ".join(schema.names), "config.data.text.field names another"
            raise NotText(f'has no text in a column "{field}" (has: {held}); {hint}')
        for batch in file.iter_batches(1024, columns=[field]):
            yield from (str(v).encode() for v in batch.column(0).to_pylist() if v)
    except (pa.ArrowException, OSError) as error:
        raise NotText(f"is no readable Parquet ({error})") from None
