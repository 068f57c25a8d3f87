"""Folders of checkpoints, moved and removed: renamed, or in a bucket copied.

In a bucket nothing is renamed at once. A checkpoint is complete there as long as the
object is there that orbax writes last, so that is what is copied last and removed
first: whenever a process is killed, one of both folders is complete.
"""

import shutil
from typing import Any

from normjax.core.files import exists, os_errors, remove
from normjax.core.paths import is_local, workdir_path

COMMITTED = "commit_success.txt"
"""What orbax writes last into the folder of a checkpoint in a bucket."""


def is_complete(folder: Any) -> bool:
    """Whether there is a folder, or in a bucket all of a checkpoint."""
    folder = workdir_path(folder)
    return folder.exists() if is_local(folder) else exists(folder / COMMITTED)


def newest_step(folder: Any) -> int | None:
    """Step of the newest checkpoint in a folder of them; None without any.

    Raises:
      OSError: it cannot be read.
    """
    folder = workdir_path(folder)
    with os_errors(folder):
        there = folder.iterdir() if folder.exists() else ()
        steps = [int(place.name) for place in there if place.name.isdecimal()]
        return max((s for s in steps if is_complete(folder / str(s))), default=None)


def move(folder: Any, target: Any) -> None:
    """Move a checkpoint to where there is none that is complete.

    Raises:
      OSError: it cannot be moved.
    """
    folder, target = workdir_path(folder), workdir_path(target)
    if is_local(folder):
        folder.rename(target)
        return
    import fsspec

    remove_folder(target)
    with os_errors(folder):
        files = fsspec.filesystem("gcs")
        below = len(files._strip_protocol(str(folder))) + 1
        names = [name[below:] for name in files.find(str(folder))]
        last = [name for name in names if name == COMMITTED]
        for group in ([name for name in names if name != COMMITTED], last):
            if group:
                there = [f"{target}/{name}" for name in group]
                files.copy([f"{folder}/{name}" for name in group], there)
    remove_folder(folder)


def remove_folder(folder: Any) -> None:
    """Remove a folder with what is in it, if it is there.

    Raises:
      OSError: it cannot be removed.
    """
    place: Any = workdir_path(folder)
    if is_local(place):
        if place.exists():
            shutil.rmtree(place)
        return
    remove(place / COMMITTED)
    with os_errors(place):
        place.rmtree(missing_ok=True)
