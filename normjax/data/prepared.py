"""Where prepared data lies, and how a file of it is made: complete or not at all."""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from normjax.core.errors import UserError, one_of


def preparation_key(builder: Any, split: str) -> str:
    """A name for one split of one preparation."""
    info = pathlib.Path(builder.data_path) / "dataset_info.json"
    identity = f"{info.absolute()} {info.stat().st_mtime_ns} {split}"
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def cache_dir(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """`data_dir`, else NORMJAX_DATA_DIR of the environment, else the user's cache."""
    default = os.environ.get("NORMJAX_DATA_DIR") or "~/.cache/normjax"
    return pathlib.Path(data_dir or default).expanduser()


@contextlib.contextmanager
def complete_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which becomes `target` when the block ends well.

    Raises:
      UserError: `target` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix="incomplete.")
    except OSError as error:
        where = f"cannot write to {str(target.parent)!r} ({error.strerror})"
        raise UserError(
            f"{where}; name a writable folder in data_dir or NORMJAX_DATA_DIR"
        ) from None
    with scratch as folder:
        made = pathlib.Path(folder) / target.name
        made.mkdir()
        yield made
        # Another process may have been faster; its folder is as good.
        with contextlib.suppress(OSError):
            made.rename(target)


@contextlib.contextmanager
def intact(folder: pathlib.Path) -> Iterator[None]:
    """Reads files that `complete_folder` made.

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
