"""Paths that a user gives."""

import os
import re
from pathlib import Path

from normjax.core.errors import UserError


def local_path(what: str, path: str | os.PathLike) -> Path:
    """`path`; of "gs://bucket/run" it would be a new folder with the name "gs:".

    Args:
      what: is looked for there, "workdir".

    Raises:
      UserError: an address such as gs://bucket/run or s3://bucket/run.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", os.fspath(path)):
        raise UserError(
            f"{what} {os.fspath(path)!r} is no path of a file system (allowed): mount "
            "the bucket, as gcsfuse and bucket=... of tpu_scripts do, and name a path "
            "there"
        )
    return Path(path)
