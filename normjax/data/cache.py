"""The prepared sets of a cache: what they are, how large, and how to be rid of them."""

import contextlib
import pathlib
import shutil
import time
from typing import NamedTuple

from normjax.core.errors import UserError
from normjax.core.locks import locked
from normjax.data.image_sets import FOLDERS

DEPTHS = {"digits": 0, **dict.fromkeys((*FOLDERS, "decoded"), 1), "text": 3}
"""Folders of the cache, and how deep in them a set lies; what else is there is not
ours."""


_LOCK = ".lock"


class Entry(NamedTuple):
    """A prepared set.

    Attributes:
      kind: folder of the cache that it lies in.  path: its own.
      num_bytes: of all its files.  written: when the newest was, in seconds.
    """

    kind: str
    path: pathlib.Path
    num_bytes: int
    written: float

    @property
    def days(self) -> float:
        """Since it was written."""
        return (time.time() - self.written) / 86_400


def entries(cache: pathlib.Path) -> list[Entry]:
    """What is prepared, the largest first; half-made sets of killed processes, too."""
    found = []
    for kind, depth in DEPTHS.items():
        for path in cache.glob("/".join([kind, *"*" * depth])):
            if path.name.endswith(_LOCK):
                continue
            files = [f.stat() for f in path.rglob("*") if f.is_file()]
            size = sum(stat.st_size for stat in files)
            written = max((stat.st_mtime for stat in files), default=0.0)
            found.append(Entry(kind, path, size, written))
    return sorted(found, key=lambda entry: -entry.num_bytes)


def remove(entry: Entry) -> None:
    """Remove a prepared set; it is made again when it is needed.

    Raises:
      UserError: a process is making it.  OSError: it cannot be removed.
    """

    def busy(holder: str) -> None:
        raise UserError(f"{holder} is at work in {str(entry.path)!r}: let it end")

    beside = entry.path.with_name(f".{entry.path.name}{_LOCK}")
    with contextlib.ExitStack() as stack:
        for lock in (beside, *entry.path.rglob(f"*{_LOCK}")):
            if lock.exists():
                held = locked(lock, busy=busy, lockless=lambda reason: None)
                stack.enter_context(held)
        _remove(entry)


def _remove(entry: Entry) -> None:
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink()
