"""Paths that a user gives: of this machine, and of runs also in buckets."""

import os
import re
from pathlib import Path
from typing import Any, cast

from normjax.core.errors import UserError

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
_BUCKET = re.compile(r"gs://[^/]+(/.*)?")


def local_path(what: str, path: str | os.PathLike) -> Path:
    """`path`; of "gs://bucket/run" it would be a new folder with the name "gs:".

    Args:
      what: is looked for there, "data".

    Raises:
      UserError: an address such as gs://bucket/run or s3://bucket/run.
    """
    if _ADDRESS.match(os.fspath(path)):
        raise UserError(
            f"{what} {os.fspath(path)!r} is no path of a file system (allowed): mount "
            "the bucket, as gcsfuse and bucket=... of tpu_scripts do, and name a path "
            "there"
        )
    return Path(path)


def workdir_path(path: str | os.PathLike, what: str = "workdir") -> Path:
    """The folder of a run: a `pathlib.Path`, or an `epath.Path` of gs://bucket/run.

    epath's has of pathlib's what is common to folders and buckets: no file is appended
    to there, nothing is renamed as a whole, and folders are what names have in common.

    Raises:
      UserError: an address of anything else, or gs:// where gcsfs is not installed.
    """
    text = os.fspath(path)
    if not _ADDRESS.match(text):
        return Path(path)
    if not _BUCKET.fullmatch(text):
        raise UserError(
            f"{what} {text!r} is nowhere that checkpoints can be (allowed: a path of a "
            "file system, as buckets have where they are mounted, or gs://BUCKET/RUN)"
        )
    return _in_bucket(text, what)


def is_local(path: Any) -> bool:
    """Whether what `workdir_path` gave lies on a file system."""
    return isinstance(path, Path)


def _in_bucket(text: str, what: str) -> Path:
    # TensorFlow, where it is installed, would be loaded for the same.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec
    from etils import epath

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(
            f"{what} {text!r} needs gcsfs ({error}): pip install gcsfs"
        ) from error
    # Tensorstore and other processes write there as well: listings would grow old.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return cast(Any, epath.Path(text))
