"""Where prepared data lies, and how a file of it is made: complete or not at all."""

import contextlib
import errno
import functools
import glob
import hashlib
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from normjax.core.errors import UserError, one_of, utf8_path
from normjax.core.locks import locked
from normjax.core.paths import local_path


def preparation_key(builder: Any, split: str) -> str:
    """A name for one split of one preparation."""
    info = pathlib.Path(builder.data_path) / "dataset_info.json"
    identity = f"{info.absolute()} {info.stat().st_mtime_ns} {split}"
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def cache_dir(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """`data_dir`, else NORMJAX_DATA_DIR of the environment, else the user's cache."""
    default = os.environ.get("NORMJAX_DATA_DIR") or "~/.cache/normjax"
    path = utf8_path("data_dir", os.fspath(data_dir or default))
    return local_path("data_dir", path).expanduser()


def prepare(
    target: pathlib.Path, make: Callable[[pathlib.Path], pathlib.Path | None]
) -> None:
    """`target` as `make` leaves it, unless it is there: complete or not at all.

    One process makes it, of however many machines share the file system; others that
    want it say so on stderr, wait, and find it. Where there are no locks each makes
    one, and the first is kept. What a killed process left half-made is removed.

    Args:
      make: writes into an empty folder, which becomes `target`; or a folder in it does,
        which it returns.

    Raises:
      UserError: `target` cannot be written, or what `make` raises.
    """
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            target.with_name(f".{target.name}.lock"),
            busy=lambda holder: say(f"waiting for {holder} to make {str(target)!r}"),
            lockless=lambda reason: None,
        ) as alone:
            if not target.exists():
                _make(target, make, alone)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        where = f"cannot write to {str(target.parent)!r} ({error.strerror})"
        raise UserError(
            f"{where}; name a writable folder in data_dir or NORMJAX_DATA_DIR"
        ) from None


_UNWRITABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
}


def _make(target: pathlib.Path, make: Callable[..., Any], alone: bool) -> None:
    prefix = f"incomplete.{target.name}.{socket.gethostname()}."
    if alone:  # what is there of this host is of a process that was killed
        for left in target.parent.glob(glob.escape(prefix) + "*"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as scratch:
        folder = pathlib.Path(scratch) / target.name
        folder.mkdir()
        made = make(folder) or folder
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise


def check_room(folder: pathlib.Path, size: int, what: str, hint: str = "") -> None:
    """Check that `size` bytes fit where `folder` lies.

    Raises:
      UserError: they do not; the line names `what` they are, and `hint`.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        needs = f"{what} needs {size / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free"
        rest = f", {hint}" if hint else ""
        raise UserError(
            f"{needs} in {str(folder.parent.parent)!r}: make room (python -m "
            f"normjax.data clear), name another folder in config.data.data_dir{rest}"
        )


def say(text: str) -> None:
    """On stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def intact(folder: pathlib.Path) -> Iterator[None]:
    """Reads files that `prepare` made.

    Raises:
      UserError: one is missing or damaged.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError) as error:
        hint = "remove the folder, and it is made again"
        message = f"prepared data in {str(folder)!r} is damaged ({error}); {hint}"
        raise UserError(message) from None


def open_tfds(
    name: str,
    data_dir: str | os.PathLike | None,
    embedded: Sequence[str],
    *,
    such_as: str = "cifar10",
) -> Any:
    """A builder of files that are there; the set's own code is never run.

    Args:
      embedded, such_as: names to propose where `name` is unknown: all that need no
        preparation, and one of TFDS.

    Raises:
      UserError: unknown name, a set that is not prepared or without random access.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    known = re.split("[/:]", name)[0] in _tfds_names()
    where = {} if data_dir is None else {"data_dir": os.fspath(data_dir)}
    try:
        builder = read_only_builder.builder_from_files(name, **where)
    except (tfds.core.DatasetNotFoundError, ValueError):
        if not known:
            hint = f"or any TFDS name such as {such_as!r}"
            message = one_of("data set", name, [*embedded, *_near(name)])
            raise UserError(f"{message}, {hint}") from None
        option = "".join(f" --data_dir={value}" for value in where.values())
        raise UserError(
            f"data set {name!r} is not prepared; where tensorflow is installed, run: "
            f"tfds build {name} --file_format=array_record{option}"
        ) from None
    formats = {each.value for each in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"data set {name!r} is prepared as {', '.join(sorted(formats))} only; "
            "where tensorflow is installed, run: tfds convert_format "
            f"--dataset_version_dir={builder.data_path} --out_file_format=array_record"
        )
    return builder


@functools.cache
def _tfds_names() -> frozenset[str]:
    import tensorflow_datasets as tfds

    return frozenset(tfds.list_builders(with_community_datasets=False))


def _near(name: str) -> list[str]:
    """TFDS names close to `name`; all of them would drown the message."""
    import difflib

    return difflib.get_close_matches(name, sorted(_tfds_names()), n=2, cutoff=0.7)
