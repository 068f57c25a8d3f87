"""Files of JSON lines that grow: on a file system by a line, in a bucket by an object.

Objects cannot be appended to. In a bucket the newest lines of NAME.jsonl lie in
segments beside it, NAME-COUNT.jsonl, where COUNT lines stand before them; the last
segment is written again with every line, and all are folded into the file at the end.
As a segment says where its lines stand, each line is read once, whatever was folded
when a run was killed.
"""

import json
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from typing import Any

from normjax.core.files import exists, os_errors, read, remove, write
from normjax.core.paths import is_local

Record = dict[str, Any]
Beside = Callable[[Record], Any]

SEGMENT = 100
"""Lines that are at most written again with a new one."""


def read_lines(path: Path) -> list[Record]:
    """All records of a file; from a half-written line on they are left out.

    Raises:
      OSError: it cannot be read.
    """
    if is_local(path):
        return _records(path.read_text()) if path.exists() else []
    segments = []
    for start, segment in _segments(path):
        try:
            segments.append((start, _records(read(segment).decode())))
        except FileNotFoundError:  # folded meanwhile
            continue
    records = _records(read(path).decode()) if exists(path) else []
    for start, found in segments:
        records = records[:start] + found
    return records


def open_lines(
    path: Path, kept: Iterable[Record], beside: Beside | None = None
) -> "Appended | Segments":
    """A file that holds the records `kept`, to write more.

    Args:
      beside: called with each of those; in a bucket by the thread that sends them.

    Raises:
      OSError: it cannot be written.
    """
    kind = Appended if is_local(path) else Segments
    return kind(path, kept, beside or (lambda record: None))


class Appended:
    """Lines of a file of a file system."""

    def __init__(self, path: Path, kept: Iterable[Record], beside: Beside):
        path.write_text("".join(map(_line, kept)))
        self._file, self._beside = path.open("a", buffering=1), beside

    def write(self, record: Record) -> None:
        """Append a line."""
        self._file.write(_line(record))
        self._beside(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Segments:
    """Lines of objects in a bucket.

    They are sent by a thread. At most one line is on its way: the next one waits for
    it, so that a process that is killed loses no more than that.
    """

    def __init__(self, path: Path, kept: Iterable[Record], beside: Beside):
        self._path, self._beside = path, beside
        self._lines = list(map(_line, kept))
        self._start = len(self._lines)
        self._thread = futures.ThreadPoolExecutor(1)
        self._sent: futures.Future | None = None
        self._fold()

    def write(self, record: Record) -> None:
        """Send a line, once the one before it is there.

        Raises:
          OSError: that one could not be written.
        """
        self._wait()
        if len(self._lines) - self._start >= SEGMENT:
            self._start = len(self._lines)
        self._lines.append(_line(record))
        content = "".join(self._lines[self._start :]).encode()
        segment = _segment(self._path, self._start)
        self._sent = self._thread.submit(self._send, segment, content, record)

    def close(self) -> None:
        """Fold all segments into the file.

        Raises:
          OSError: it cannot be written.
        """
        self._thread.shutdown()
        self._wait()
        if self._lines[self._start :]:
            self._start = len(self._lines)
            self._fold()

    def _send(self, segment: Path, content: bytes, record: Record) -> None:
        write(segment, content)
        self._beside(record)

    def _wait(self) -> None:
        sent, self._sent = self._sent, None
        if sent:
            sent.result()

    def _fold(self) -> None:
        write(self._path, "".join(self._lines).encode())
        for _, segment in _segments(self._path):
            remove(segment)


def _segment(path: Path, start: int) -> Path:
    return path.with_name(f"{path.stem}-{start:08d}{path.suffix}")


def _segments(path: Path) -> list[tuple[int, Path]]:
    """Those in a bucket, by how many lines stand before them."""
    with os_errors(path):
        found = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))
    return [(int(p.stem.rpartition("-")[2]), p) for p in found]


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _records(text: str) -> list[Record]:
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
