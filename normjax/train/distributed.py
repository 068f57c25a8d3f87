"""One run on several processes: how they find each other.

Every process runs the same command. The environment says who takes part:

- `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
  `JAX_PROCESS_ID`, set by hand or by a manifest;
- SLURM, in a step of `srun` with several tasks, or Open MPI: JAX reads their variables;
- on a TPU, Cloud TPU's metadata server or the variables of GKE, likewise.

With none of them there is one process.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from normjax.core.errors import UserError
from normjax.train import report

T = TypeVar("T")

SILENCE, FAREWELL = 40, 60
"""Seconds without a sign of life after which a process counts as dead and the others
end, and that one which ends waits for the others."""

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT, INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# Launchers that JAX knows: how many processes they have started.
_LAUNCHERS = {
    "SLURM_STEP_NODELIST": "SLURM_NTASKS",
    "OMPI_MCA_orte_hnp_uri": "OMPI_COMM_WORLD_SIZE",
}


def initialize() -> None:
    """Join the other processes of this run, if there are any.

    To be called once, before anything asks JAX for its devices. All processes but the
    first print nothing from then on.

    Raises:
      UserError: variables that contradict each other.
    """
    arguments = arguments_of(os.environ)
    if arguments is None and _on_tpu():
        arguments = {}
    if arguments is None:
        return
    # It would take SIGTERM away from the loop, which stops at a step of its own choice
    # (see `signals`), and it knows no SIGINT.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=FAREWELL,
        )
    except ValueError:
        if arguments or not _on_tpu():
            raise
        return  # a TPU without a cluster around it
    report.console.quiet = not is_first()


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def on_first(work: Callable[[], T]) -> T | None:
    """What `work` gives in the first process, None in the others, which wait for it.

    Raises:
      UserError: `work` did; in all processes.
    """
    result, error = None, None
    if is_first():
        try:
            result = work()
        except UserError as reason:
            error = reason
    if from_first(int(error is not None)):
        raise error or UserError("the first process refused to start")
    return result


def from_first(value: int) -> int:
    """The first process's value, in all of them; waits for it."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def in_any(value: bool) -> bool:
    """Whether `value` is true in any process; waits for all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(value)).any())


def arguments_of(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None: there is one process.

    Raises:
      UserError: an index without a count, a count that is no number, and the like.
    """
    launched = next(
        (
            environ.get(count, "1")
            for mark, count in _LAUNCHERS.items()
            if mark in environ
        ),
        "1",
    )
    given = {k: environ[k] for k in (ADDRESS, COUNT, INDEX) if environ.get(k)}
    if not given or (set(given) == {ADDRESS} and launched != "1"):
        return {} if launched != "1" else None
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
    if missing:
        raise UserError(
            f"several processes: {', '.join(given)} without {', '.join(missing)}"
        )
    numbers = {}
    for name in (COUNT, INDEX):
        if not given[name].isdecimal():
            raise UserError(f"{name} takes a whole number: {given[name]!r}")
        numbers[name] = int(given[name])
    if not numbers[INDEX] < numbers[COUNT]:
        raise UserError(
            f"{INDEX}={numbers[INDEX]} must be less than {COUNT}={numbers[COUNT]}"
        )
    if ":" not in given[ADDRESS]:
        raise UserError(f"{ADDRESS} takes host:port: {given[ADDRESS]!r}")
    if numbers[COUNT] == 1:
        return None
    return {
        "coordinator_address": given[ADDRESS],
        "num_processes": numbers[COUNT],
        "process_id": numbers[INDEX],
        "cluster_detection_method": "deactivate",
    }


def _on_tpu() -> bool:
    """Where there are TPU chips JAX has made them its first platform by now."""
    return "tpu" in (jax.config.jax_platforms or "").split(",")
