"""Files inside of tar archives, read where they lie."""

import contextlib
import os
import pathlib
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from normjax.core.errors import UserError
from normjax.data.plain_text import PACKINGS

ENDINGS = (".tar", *(f".tar{ending}" for ending in PACKINGS), ".tgz", ".tbz2", ".txz")
"""Of names of archives; those that are packed are refused, see `members`."""


class Member(NamedTuple):
    """A file inside of an archive: `size` bytes from `offset` on, of `time`."""

    archive: pathlib.Path
    offset: int
    size: int
    time: float


def members(path: pathlib.Path) -> tuple[dict[str, Member], list[str], int]:
    """What an archive holds: its files by name, its folders, and how many others.

    Names are plain, without "./" before; of two members of one name the last counts, as
    when it is unpacked. Others are links, devices, and files with holes.

    Raises:
      UserError: it is packed, which leaves no way to one file but through all before;
        it is cut off, damaged, or no archive.
    """
    found: dict[str, Member] = {}
    folders, others, end = [], 0, 0
    try:
        with path.open("rb") as file:
            start = file.read(8)
        for packing in PACKINGS.values():
            if start.startswith(packing.magic):
                raise UserError(
                    f"{str(path)!r} is a tar inside of {packing.name}, where no file "
                    "can be reached but through all before it: unpack it"
                )
        with tarfile.open(path, "r:", errors="surrogateescape") as archive:
            for info in archive:
                end = info.offset_data + -(-info.size // 512) * 512 * info.isreg()
                parts = [p for p in info.name.split("/") if p not in ("", ".")]
                name = "/".join(parts)
                if info.isdir():
                    folders += [name] if name else []
                elif info.isreg() and not info.issparse():
                    where = path, info.offset_data, info.size, info.mtime
                    found[name] = Member(*where)
                else:
                    others += 1
        with path.open("rb") as file:
            file.seek(end)
            rest = file.read(1024)
        size = path.stat().st_size
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)!r} is no readable tar ({error})") from None
    if end > size or rest.strip(b"\0"):
        raise UserError(f"{str(path)!r} is cut off or damaged after {len(found)} files")
    return found, folders, others


@contextlib.contextmanager
def opened(index: Mapping[str, Member]) -> Iterator[Callable[[str], bytes]]:
    """A function from the name of a member to its bytes, which threads may share."""
    files: dict[pathlib.Path, int] = {}
    lock = threading.Lock()

    def read(name: str) -> bytes:
        member = index[name]
        with lock:
            if member.archive not in files:
                files[member.archive] = os.open(member.archive, os.O_RDONLY)
        content = os.pread(files[member.archive], member.size, member.offset)
        if len(content) != member.size:
            raise EOFError(f"{str(member.archive)!r} is cut off")
        return content

    try:
        yield read
    finally:
        for file in files.values():
            os.close(file)
