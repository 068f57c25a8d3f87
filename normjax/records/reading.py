"""Reading a checkpoint: sound, damaged, or of another model."""

import json
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from normjax.core.console import console
from normjax.core.errors import RunFailed, UserError
from normjax.core.files import exists
from normjax.devices.processes import gather
from normjax.records.arrays import another_model, check_same_arrays
from normjax.records.checksums import checksums
from normjax.records.folders import COMMITTED
from normjax.records.leftovers import collecting_leftovers

CHECKSUMS = "checksums"
"""Entry of a checkpoint's metadata: the checksum of each of its arrays."""


class Damaged(UserError):
    """A checkpoint that cannot be read, or reads as other than it was written."""


def read_like(folder: Any, like: Any, what: str) -> dict[str, Any]:
    """The fields of a saved state, on the devices where those of `like` are.

    Args:
      folder: of the checkpoint, a path of epath.
      like: a state, or its shapes, dtypes and shardings, of the same structure; saved
        fields that it lacks are left out, and None where they are None in it.
      what: names the checkpoint in messages.

    Raises:
      Damaged: in all processes alike.  UserError: a checkpoint of another model.
      RunFailed: its bucket cannot be read.
    """

    def abstract(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    def target(saved):
        fields = {k: v for k, v in vars(like).items() if k in saved}
        unread = {k: saved[k] for k, v in fields.items() if v is None}
        where = like.step.sharding  # orbax reads a field as a whole or not at all
        there = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), unread
        )
        return {**jax.tree.map(abstract, fields), **there}

    try:
        fields = _read(folder, target, what)
        return {
            k: v if getattr(like, k) is not None else None for k, v in fields.items()
        }
    except Damaged:
        _check_model(folder, like, what)
        raise


def read_on_one(folder: Any, what: str) -> dict[str, Any]:
    """The fields of a saved state, on one device.

    Args, Raises: as of `read_like`, whatever the model.
    """
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)

    return _read(folder, lambda saved: jax.tree.map(abstract, saved), what)


def _read(folder: Any, target: Callable[[Any], Any], what: str) -> Any:
    """Read a checkpoint and compare it with its checksums.

    A bucket that cannot be reached is no damage.

    Not by orbax's manager, whose barriers a process that fails would never reach.

    Args:
      target: arrays that are there to those that are wanted, and where.
    """
    state, wrong, away, kept = None, None, False, {}
    try:
        with collecting_leftovers():
            metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
            kept = dict((metadata["custom_metadata"] or {}).get(CHECKSUMS) or {})
            args = ocp.args.StandardRestore(target(_saved(folder)))
            handler = ocp.StandardCheckpointHandler()
            state = handler.restore(folder / "default", args=args)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # tensorstore, JSON, the file system: of any kind
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        away = not _answers(folder)
    failed = [(reason, away) for reason, away in gather((wrong, away)) if reason]
    if failed:
        reason = wrong or failed[0][0]
        if any(away for _, away in failed):
            raise RunFailed(f"{what} cannot be read now ({reason})")
        raise Damaged(f"{what} is damaged ({reason})")
    if not kept:
        console.print(f"{what} carries no checksums", soft_wrap=True)
        return state
    found = checksums(state)
    changed = [name for name in found if found[name] != kept.get(name)]
    if changed:
        raise Damaged(
            f"{what} is damaged (the checksums of {len(changed)} arrays differ, such "
            f"as {changed[0]})"
        )
    return state


def _answers(folder: Any) -> bool:
    """Whether the bucket of a checkpoint can be read; file systems can."""
    try:
        exists(folder / COMMITTED)
    except OSError:
        return False
    return True


def _check_model(folder: Any, like: Any, what: str) -> None:
    """Raise what is to say of a sound checkpoint of another model."""
    reason = ""
    try:
        saved = _saved(folder)
        for name in ("params", "model_state"):
            check_same_arrays(saved[name], getattr(like, name), another_model(what))
    except UserError as error:
        reason = str(error)
    except Exception:  # damaged indeed
        reason = ""
    reasons = [reason for reason in gather(reason) if reason]
    if reasons:
        raise UserError(reasons[0])


def _saved(folder: Any) -> Any:
    """Shapes and dtypes of what a checkpoint holds."""
    metadata: Any = ocp.StandardCheckpointHandler().metadata(folder / "default")
    return metadata.tree
