"""A study's runs in several processes, each with devices of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence

from normjax.core.errors import UserError
from normjax.study.runs import Share

_COUNT = "import jax; print(jax.default_backend(), jax.local_device_count())"


def run_shares(command: Sequence[str], processes: int) -> None:
    """Run `command --share=I/N` for every I, and wait for all.

    Each process has a part of the host's cores, and one accelerator where there are.

    Raises:
      UserError: more processes than accelerators or cores, or one of them failed.
    """
    cores = sorted(os.sched_getaffinity(0))
    backend, devices = _devices()
    most = len(cores) if backend == "cpu" else devices
    if processes > most:
        what = "cores" if backend == "cpu" else f"{backend} devices"
        raise UserError(f"--processes={processes}: here are {most} {what}")
    running = []
    try:
        for i in range(processes):
            os.sched_setaffinity(0, cores[i::processes] or cores)  # is inherited
            share = f"--share={i}/{processes}"
            environment = _environment(backend, i)
            running.append(subprocess.Popen([*command, share], env=environment))
    finally:
        os.sched_setaffinity(0, cores)
    codes = [process.wait() for process in running]
    failed = [i for i, code in enumerate(codes) if code]
    if failed:
        raise UserError(
            f"processes {failed} of {processes} failed; the same command goes on"
        )


def parse_share(text: str) -> Share:
    """The share of "I/N", I from 0.

    Raises:
      UserError: it is none.
    """
    index, slash, of = text.partition("/")
    if not (slash and index.isdecimal() and of.isdecimal() and int(index) < int(of)):
        raise UserError(f"--share={text!r}: want I/N with I from 0 to N - 1")
    return Share(int(index), int(of))


def _devices() -> tuple[str, int]:
    """Backend and number of devices, found in a process that gives them free again."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"JAX finds no device: {last}")
    backend, count = done.stdout.split()[-2:]
    return backend, int(count)


def _environment(backend: str, index: int) -> dict[str, str]:
    own = dict(os.environ)
    if backend == "gpu":
        visible = own.get("CUDA_VISIBLE_DEVICES", "")
        own["CUDA_VISIBLE_DEVICES"] = (
            visible.split(",")[index] if visible else str(index)
        )
    elif backend == "tpu":
        own["TPU_VISIBLE_CHIPS"] = str(index)
        own["TPU_CHIPS_PER_PROCESS_BOUNDS"] = own["TPU_PROCESS_BOUNDS"] = "1,1,1"
    return own
