"""Checkpoints: asynchronous, atomic, checked, restorable on any devices and processes.

Each one carries the checksums of its arrays. One that cannot be read, or whose arrays
are not those that were written, is named and passed over; nothing is deleted for it.
"""

import contextlib
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from normjax.core.console import console
from normjax.core.errors import RunFailed, UserError
from normjax.core.paths import is_local, workdir_path
from normjax.devices.processes import from_first, gather, is_first
from normjax.records.checksums import checksums
from normjax.records.folders import is_complete, move, remove_folder
from normjax.records.leftovers import UnlessLeftover, collecting_leftovers
from normjax.records.manager import Manager, Names
from normjax.records.reading import CHECKSUMS, Damaged, read_like, read_on_one
from normjax.records.workdir import CHECKPOINTS

T = TypeVar("T")

_REPLACED = ".replaced"  # behind the step: set aside until a new one is complete


def _all_equal(scores: dict[str, float]) -> float:
    del scores
    return 0.0


class Checkpoints:
    """The checkpoints of one workdir.

    Saving copies the state to the host and writes it in the background; a folder counts
    as a checkpoint once its writing is complete. The newest `keep_last` and the
    `keep_best` by their scores stay.

    Args:
      rank: scores to how good they are, more is better; not called for a checkpoint
        that was not evaluated, which comes last.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        rank: Callable[[dict[str, float]], float] = _all_equal,
    ):
        def score(metrics: dict[str, float]) -> float:
            return rank(metrics) if metrics else -math.inf

        UnlessLeftover.install()
        keep = [
            policies.LatestN(keep_last),
            policies.BestN(get_metric_fn=score, n=keep_best),
        ]
        self._workdir = workdir
        path = workdir_path(workdir)
        self._several = jax.process_count() > 1
        self._manager = Manager(
            (path.absolute() if is_local(path) else path) / CHECKPOINTS,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=score,  # without it the metrics would not be stored
                enable_async_checkpointing=True,
                step_name_format=Names(),
            ),
        )
        self._latest = from_first(self._manager.latest_step())

    def latest(self) -> int | None:
        """Step of the newest checkpoint, the same in all processes.

        Of those that the first process saw at the start, or of what was saved or, in
        place of damaged ones, restored since.
        """
        return self._latest

    def best(self) -> int | None:
        """Step of the checkpoint with the best scores, as the first process sees it."""
        return from_first(self._manager.best_step())

    def save(self, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Write `state` in the background.

        Raises:
          RunFailed: it cannot be written, or an earlier one could not.
        """
        step = int(state.step)

        def write():
            self._wait()
            self._manager.save(
                step,
                args=ocp.args.StandardSave(state),
                metrics=metrics or {},
                custom_metadata={CHECKSUMS: checksums(state)},
            )

        self._try(write)
        self._latest = step

    def is_scored(self, step: int) -> bool:
        """Whether the checkpoint of `step` was saved with scores."""
        return bool(from_first(bool(self._manager.metrics(step))))

    def replace(self, state: Any, metrics: dict[str, float]) -> None:
        """Write `state` in the place of the checkpoint of its step.

        That one stays, set aside, until the new one is complete; `restore_newest` puts
        it back if this process ends in between.

        Raises:
          RunFailed: as `save`.
        """
        step = int(state.step)
        aside = self._folder(step).with_name(f"{step}{_REPLACED}")
        self.wait()
        self._on_first(lambda: move(self._folder(step), aside))
        self.save(state, metrics)
        self.wait()
        self._on_first(lambda: remove_folder(aside))

    def wait(self) -> None:
        """Wait until what was saved is complete.

        Raises:
          RunFailed: as `save`.
        """
        self._try(self._wait)

    def check(self) -> None:
        """Notice a failure in the background; costs nothing.

        Raises:
          RunFailed: a checkpoint could not be written.
        """
        self._try(self._manager.check_for_errors)

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, on this run's devices.

        Args:
          like: a state, or its shapes, dtypes and shardings, of the same structure; it
            says where every array goes, wherever it came from.

        Raises:
          Damaged: in all processes alike.  UserError: a checkpoint of another model.
        """

        fields = read_like(self._folder(step), like, self._what(step))
        state = type(like)(**fields)
        if state.ema_stats is None and like.ema_stats is not None:
            _print(
                f"{self._what(step)} is older than averages of batch "
                "statistics: theirs begins with those of the model"
            )
            state = state.with_new_ema_stats()
        return state

    def restore_newest(self, like: Any, *, set_aside: bool = False) -> Any:
        """The newest state that is not damaged, or None where there is none at all.

        Says which checkpoints were passed over.

        Args:
          like: as in `restore`.
          set_aside: rename the damaged ones, so that the run, which goes on from an
            earlier step, can write its own in their place.

        Raises:
          UserError: all are damaged.
        """
        self._try(self._wait)
        if set_aside:
            self._on_first(self._put_back)
            self._check_seen()
        state, damaged = self._newest(lambda step: self.restore(step, like))
        if set_aside and damaged:
            if is_first():
                for step in damaged:
                    folder = self._folder(step)
                    move(folder, _unused(folder.with_name(f"{step}.damaged")))
            from_first(None)
            self._manager.reload()
            self._latest = self._manager.latest_step()
        return state

    def read_newest(self) -> dict[str, Any] | None:
        """The fields of the newest state that is not damaged, on the host.

        Raises:
          UserError: all are damaged.
        """
        state, _ = self._newest(
            lambda step: read_on_one(self._folder(step), self._what(step))
        )
        return jax.device_get(state)

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
          RunFailed: as `save`.
        """
        try:
            self._try(self._wait)
        except RunFailed:
            if not self._several:  # closing would wait as well
                with contextlib.suppress(Exception):  # what has failed fails again
                    self._manager.close()
            raise
        self._manager.close()

    def _wait(self) -> None:
        """Until everything is written; raises what has failed meanwhile."""
        if not self._several:
            self._manager.wait_until_finished()
            return
        # Where the write of this process has failed, orbax's thread waits for those of
        # the others, which wait for this one.
        errors = []

        def wait():
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                errors.append(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while waiting.is_alive():
            self._manager.check_for_errors()
            waiting.join(0.2)
        if errors:
            raise errors[0]

    def _check_seen(self) -> None:
        """All processes see the same checkpoints: what each does next depends on them.

        Raises:
          UserError: in all of them.
        """
        seen = gather(sorted(self._manager.all_steps()))
        for process, steps in enumerate(seen):
            if steps != seen[0]:
                raise UserError(
                    f"process {process} sees the checkpoints {steps} in workdir "
                    f"{self._workdir}, the first process {seen[0]}: all must see the "
                    "same files"
                )

    def _put_back(self) -> None:
        """What `replace` has set aside, if it has not come to its end."""
        for aside in self._manager.directory.glob(f"*{_REPLACED}"):
            place = self._folder(int(aside.name.removesuffix(_REPLACED)))
            if is_complete(place) or not is_complete(aside):
                remove_folder(aside)
            else:
                move(aside, place)

    def _on_first(self, change: Callable[[], Any]) -> None:
        """Change the folder in the first process; the others wait and see it."""
        if is_first():
            change()
        from_first(None)
        self._manager.reload()
        self._latest = from_first(self._manager.latest_step())

    def _folder(self, step: int) -> Any:
        return self._manager.directory / str(step)

    def _what(self, step: int) -> str:
        return f"checkpoint {step} of {self._workdir}"

    def _newest(self, load: Callable[[int], T]) -> tuple[T | None, list[int]]:
        """The newest that loads, and the steps of those that did not."""
        damaged: dict[int, Damaged] = {}
        for step in from_first(sorted(self._manager.all_steps(), reverse=True)):
            try:
                state = load(step)
            except Damaged as error:
                damaged[step] = error
                continue
            for error in damaged.values():
                _print(f"warning: {error}: kept, but passed over for checkpoint {step}")
            return state, list(damaged)
        if damaged:
            raise UserError(
                f"{'; '.join(map(str, damaged.values()))}: there is no other; to begin "
                "again, choose another --workdir"
            )
        return None, []

    def _try(self, write: Callable[[], Any]) -> None:
        try:
            with collecting_leftovers():
                write()
        except Exception as error:  # of the file system and of tensorstore
            raise RunFailed(
                f"workdir {self._workdir}: a checkpoint could not be written "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
                f"newest complete one: {self._newest_complete()}"
            ) from error

    def _newest_complete(self) -> int | str | None:
        try:
            self._manager.reload()
            return self._manager.latest_step()
        except Exception:  # nothing is written nor read any more
            return "unknown"


def _unused(path: Any) -> Any:
    """`path`, or with a number behind it."""
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 1000))
    return next(p for p in (path, *names) if not p.exists())


def _print(line: str) -> None:
    console.print(line, soft_wrap=True)
