"""The folder of a run: one run at a time, room for its checkpoints."""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.files import exists, remove
from normjax.core.locks import locked
from normjax.core.paths import is_local, workdir_path
from normjax.devices.processes import from_first, gather, on_first
from normjax.records.json_files import write_json

LOCK_FILE = "run.lock"
CHECKPOINTS = "checkpoints"

PATIENCE = 10.0
"""Seconds in which a file that one process has written comes into sight of another."""


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Make the folder, if need be, and keep other runs out of it while entered.

    The operating system holds the lock (flock), so that a run that is killed leaves
    none. The first process of a run takes it for all; reading needs none. A bucket has
    no locks, which is said.

    Raises:
      UserError: in all processes: another run has the folder, it cannot be written, or
        it is not the same one for all.
    """
    workdir = workdir_path(workdir)
    with contextlib.ExitStack() as stack:
        on_first(lambda: _lock(workdir, stack))
        _check_shared(workdir)
        yield


def _check_shared(workdir: Path) -> None:
    """The folder in which the first process leaves a mark is everybody's."""
    mark = workdir / from_first(f".seen-by-all-{secrets.token_hex(8)}")
    on_first(lambda: write_json(mark, {}))
    seen = gather([_appears(mark), socket.gethostname()])
    on_first(lambda: remove(mark))
    blind = [f"{i} ({host})" for i, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise UserError(
            f"workdir {workdir} of process {', '.join(blind)} is not that of process 0 "
            f"({seen[0][1]}): all processes need one folder, on a file system that all "
            "of their machines see, or in a bucket, gs://BUCKET/RUN"
        )


def _appears(path: Path) -> bool:
    """Whether it is there, or comes: file systems that cache take their time."""
    end = time.monotonic() + PATIENCE
    while not _is_there(path):
        if time.monotonic() > end:
            return False
        time.sleep(PATIENCE / 20)
    return True


def _is_there(path: Path) -> bool:
    try:
        return exists(path)
    except OSError:
        return False


def _lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    if not is_local(workdir):
        console.print(
            f"warning: buckets have no locks: a second run in {workdir} would not be "
            "noticed",
            soft_wrap=True,
        )
        return

    def busy(holder: str) -> None:
        raise UserError(
            f"workdir {workdir} is in use by {holder}: wait until it ends, stop it, or "
            "choose another --workdir"
        )

    def lockless(reason: str) -> None:
        console.print(
            f"warning: the file system of {workdir} has no locks ({reason}): a "
            "second run there would not be noticed",
            soft_wrap=True,
        )

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = locked(workdir / LOCK_FILE, busy=busy, lockless=lockless)
        stack.enter_context(lock)
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error.strerror}") from error


def check_room(workdir: Path, state: Any, keep: int) -> None:
    """Check that the folder can be written and that the checkpoints will fit in.

    To be called in the first process. A bucket has room for everything.

    Args:
      state: shapes and dtypes of what is saved.
      keep: checkpoints that stay; one more is written before the oldest goes.

    Raises:
      UserError: with what is there and what is needed.
    """
    if not is_local(workdir):
        return
    try:
        with tempfile.TemporaryFile(dir=workdir) as probe:
            probe.write(b"\0")
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(workdir).free
    except OSError as error:
        raise UserError(f"workdir {workdir}: {error.strerror}") from error
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    there = len(list(Path(workdir).glob(f"{CHECKPOINTS}/[0-9]*")))
    copies = max(1, keep + 1 - there)
    if free < copies * size:
        raise UserError(
            f"workdir {workdir} has {_megabytes(free)} free and needs "
            f"{_megabytes(copies * size)} for {copies} more checkpoints of "
            f"{_megabytes(size)}: make room, or lower config.checkpoint.keep_last or "
            "keep_best"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
