"""Lock files: one process at a time, of however many machines share a file system."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def locked(
    path: Path, *, busy: Callable[[str], None], lockless: Callable[[str], None]
) -> Iterator[bool]:
    """Holds the lock of the file `path` while entered.

    The operating system holds it (flock), so that a process that is killed leaves none.
    The file stays; it says who holds it.

    Args:
      path: in a folder that exists.
      busy: called with who holds it, if it is not free: raises, or else it is waited
        for.
      lockless: called with the reason where the file system has no locks; raises, or
        else it is gone on without.

    Yields:
      whether it is held; False where there are no locks.

    Raises:
      OSError: the file cannot be written.
    """
    with path.open("a+") as file:
        held = True
        try:
            _take(file, busy)
        except OSError as error:
            held = False
            lockless(error.strerror or str(error))
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        file.truncate(0)
        file.write(json.dumps(mine))
        file.flush()
        try:
            yield held
        finally:
            file.truncate(0)


def _take(file: TextIO, busy: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        busy(_describe_holder(file.read()))
        fcntl.flock(file, fcntl.LOCK_EX)


def _describe_holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return "process {pid} on {host} since {since}".format(**holder)
    except (ValueError, KeyError, TypeError):
        return "another process"
