"""Files of a run, on file systems and in buckets: whole or not there at all."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from normjax.core.paths import is_local


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    known = isinstance(error, OSError) and error.strerror
    return known or " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """What gcsfs raises for a path in a bucket is an OSError, as of a file system."""
    try:
        yield
    except Exception as error:
        if is_local(path) or isinstance(error, OSError):
            raise
        raise OSError(f"{type(error).__name__}: {reason(error)}") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """To be written; `path` is there, complete, once the context ends without an error.

    Raises:
      OSError: it cannot be written.
    """
    if is_local(path):
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            yield file
        temporary.rename(path)
    else:
        buffer = io.BytesIO()
        yield buffer
        write(path, buffer.getvalue())


def write(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
      OSError: it cannot be written.
    """
    if is_local(path):
        with whole_file(path) as file:
            file.write(content)
    else:
        with os_errors(path):
            path.write_bytes(content)


def exists(path: Path) -> bool:
    """Whether there is anything at `path`.

    Raises:
      OSError: nobody knows, as the bucket cannot be read.
    """
    with os_errors(path):
        return path.exists()


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
      OSError: it cannot be read.
    """
    with os_errors(path):
        return path.read_bytes()


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
      OSError: it cannot be removed.
    """
    with os_errors(path):
        path.unlink(missing_ok=True)


def upload(folder: Path, target: Path) -> None:
    """Copy what is in a folder of this machine to a bucket.

    Raises:
      OSError: it cannot be written.
    """
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            write(target / file.relative_to(folder).as_posix(), file.read_bytes())
