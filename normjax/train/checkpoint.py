"""Checkpoints: asynchronous, atomic, restorable on any devices and processes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


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

        keep = [
            policies.LatestN(keep_last),
            policies.BestN(get_metric_fn=score, n=keep_best),
        ]
        self._manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=score,  # without it the metrics would not be stored
                enable_async_checkpointing=True,
            ),
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the best scores."""
        return self._manager.best_step()

    def save(self, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Write `state` in the background. An earlier failed write raises here."""
        self._manager.save(
            int(state.step), args=ocp.args.StandardSave(state), metrics=metrics or {}
        )

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, on this run's devices.

        Args:
          like: a state, or its shapes, dtypes and shardings, of the same structure; it
            says where every array goes, wherever it came from.
        """

        def abstract(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

        target = jax.tree.map(abstract, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def read(self, step: int) -> dict[str, Any]:
        """The fields of the state saved at `step`, on the host."""
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)

        folder, handler = self._manager.directory, ocp.StandardCheckpointHandler()
        with ocp.CheckpointManager(folder, item_handlers=handler) as reader:
            saved: Any = reader.item_metadata(step)
            args = ocp.args.StandardRestore(jax.tree.map(abstract, saved.tree))
            return jax.device_get(reader.restore(step, args=args))

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
