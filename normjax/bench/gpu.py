"""All tables that tell how an accelerator does, each made in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from normjax.bench.sizes import SMALL
from normjax.core.errors import UserError, one_of


class Section(NamedTuple):
    """One command of `normjax.bench`.

    Attributes:
      limit: seconds that it may take.  small: what makes it try itself in seconds.
    """

    command: tuple[str, ...]
    limit: int
    small: str = SMALL


_NORMS = ("layer_norm", "rms_norm", "batch_norm", "group_norm", "prepbn")
_MODELS = ("slab_deit_tiny", "slab_swin_tiny", "deit_tiny", "swin_tiny")

SECTIONS = {
    "golden": Section(("golden",), 100),
    "norms": Section(("norms", *_NORMS), 60),
    "cores": Section(("cores",), 110),
    "models": Section(("models", *_MODELS), 170),
    "loop": Section(
        ("loop", "--config=configs/digits.py"), 30, "--config.total_steps=10"
    ),
}
"""In this order; under 8 minutes together."""


def gpu_command(argv: Sequence[str]) -> int:
    """`gpu [SECTION ...] [--small]`: the sections in turn, all or those named.

    None takes memory of the device in advance, for torch needs some beside JAX. One
    that takes longer than it may is stopped; what it has printed stays. 1 if any was
    stopped or ended with an error; the others are run all the same.
    """
    names = [name for name in argv[1:] if name != SMALL]
    for name in names:
        if name not in SECTIONS:
            raise UserError(one_of("section", name, SECTIONS))
    failed = []
    for name in names or SECTIONS:
        begin, section = time.perf_counter(), SECTIONS[name]
        command = [sys.executable, "-m", "normjax.bench", *section.command]
        small = SMALL in argv
        code = run(
            [*command, section.small] if small else command,
            None if small else section.limit,
        )
        seconds = time.perf_counter() - begin
        how = "stopped" if code is None else f"exit code {code}"
        print(f"{name}: {how} after {seconds:.0f} s", flush=True)
        failed += [name] if code != 0 else []
    return 1 if failed else 0


def run(command: Sequence[str], limit: float | None) -> int | None:
    """The exit code, or None where the process was stopped at its limit.

    Args:
      limit: seconds; None for no limit.
    """
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Its own processes, too: those of models, and those of pytest.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
