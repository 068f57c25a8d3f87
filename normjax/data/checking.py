"""Images read to their end, by several threads, and once: what was seen is kept."""

import hashlib
import itertools
import json
import pathlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from normjax.data import decode
from normjax.data.folder import UNREADABLE, Reader

_AHEAD = 4  # images that a thread has at once


class Checked(NamedTuple):
    """An image of a folder.

    Attributes:
      encoded: its bytes.  content: their SHA-256.
      found: what they are, or why they cannot be read.
    """

    name: str
    label: int
    encoded: bytes
    content: str
    found: decode.Verified | Exception


class Seen:
    """What is known of images already, in a file that a killed process leaves behind.

    It belongs to data that have not changed since: its place has to tell.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.known: dict[str, decode.Verified] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                self._recall(line)
        self._file = path.open("a", buffering=2**14)

    def _recall(self, line: bytes) -> None:
        try:
            name, found = json.loads(line)
            self.known[name] = decode.Verified(**found)
        except (ValueError, TypeError):  # the last line of a killed process
            return

    def note(self, name: str, found: decode.Verified) -> None:
        if name not in self.known:
            # A line end before, because the last one may be without.
            self._file.write("\n" + json.dumps([name, vars(found)]))

    def close(self, *, keep: bool) -> None:
        self._file.close()
        if not keep:
            self._path.unlink(missing_ok=True)


def check(
    files: Iterable[tuple[str, int]], read: Reader, seen: Seen, threads: int
) -> Iterator[Checked]:
    """Every (name, label) in order, read and, if it is new, decoded to its end."""

    def one(name: str, label: int) -> Checked:
        try:
            encoded = read(name)
            found = seen.known.get(name) or decode.verify(encoded)
        except UNREADABLE as error:
            return Checked(name, label, b"", "", error)
        content = hashlib.sha256(encoded).hexdigest()
        return Checked(name, label, encoded, content, found)

    rest = iter(files)
    with ThreadPoolExecutor(threads, thread_name_prefix="normjax-check") as pool:
        pending: deque[Future[Checked]] = deque()
        try:
            for pair in itertools.islice(rest, threads * _AHEAD):
                pending.append(pool.submit(one, *pair))
            while pending:
                image = pending.popleft().result()
                for pair in itertools.islice(rest, 1):
                    pending.append(pool.submit(one, *pair))
                if isinstance(image.found, decode.Verified):
                    seen.note(image.name, image.found)
                yield image
        finally:
            for left in pending:
                left.cancel()
