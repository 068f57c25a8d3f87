"""One run on several processes: how they find each other.

Every process runs the same command. The environment says who takes part:

- `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
  `JAX_PROCESS_ID`, set by hand or by a manifest;
- SLURM, in a step of `srun` with several tasks, or Open MPI: JAX reads their variables;
- on a TPU, Cloud TPU's metadata server or the variables of GKE, likewise.

With none of them there is one process.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # orbax and flax reach for its client, too

from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.devices.group import Group

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

    To be called before anything asks JAX for its devices. All processes but the first
    print nothing from then on, and each ends soon after another one has failed.

    Raises:
      UserError: variables that contradict each other.
    """
    if jax.distributed.is_initialized():
        return
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
    console.quiet = not is_first()
    if (together := group()) is not None:
        together.watch()


@functools.cache
def _group_of(client: Any, index: int, count: int) -> Group:
    return Group(client, index, count)


def group() -> Group | None:
    """The processes of this run; None where there is one."""
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return None
    return _group_of(state.client, state.process_id, state.num_processes)


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    together = group()
    return together is None or together.index == 0


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
    line = from_first(error and str(error))
    if line:
        raise error or UserError(line)
    return result


def from_first(value: T) -> T:
    """The first process's value, which JSON must hold, in all; waits for it."""
    together = group()
    return value if together is None else together.from_first(value)


def gather(value: T) -> list[T]:
    """Everybody's value, which JSON must hold; waits for all of them."""
    together = group()
    return [value] if together is None else together.gather(value)


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
