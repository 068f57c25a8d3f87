"""Models in processes of their own, to be timed in turns.

In one process, what another model or another library leaves behind (threads, a heap in
pieces) slows a call by a tenth and more; those who run a model run it alone.

`python -m normjax.bench.process WAY NAME SIDE BATCHES TYPE` prints one line of JSON,
the size of the model and the kinds of calls that it can make; then, for each line with
an index on stdin, it makes that call and prints a line.
"""

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from normjax.cli.host import keep_freed_memory

OURS = "normjax"

Calls = dict[str, Callable[[], None]]


@contextlib.contextmanager
def model_process(
    way: str, name: str, side: int, batches: Sequence[int], dtype: str
) -> Iterator[tuple[Any, Calls]]:
    """(size, what to time by its kind) of a model; the process ends with the context.

    Args:
      way: `OURS`, or one of `torch_models.WAYS`.  name: of the model.
      side: of the images.  batches: how many at once; of the last number there is a
        training step as well.
      dtype: of the computation.
    """
    counts = ",".join(map(str, batches))
    command = [sys.executable, "-m", __name__, way, name, str(side), counts, dtype]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, bufsize=0) as process:
        size, kinds = json.loads(_answer(process))
        calls = {k: functools.partial(_ask, process, i) for i, k in enumerate(kinds)}
        yield size, calls
        process.communicate()


def _ask(process: subprocess.Popen, index: int) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # then there is no answer either
        process.stdin.write(f"{index}\n".encode())
    _answer(process)


def _answer(process: subprocess.Popen) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of a model ended, code {process.wait()}")
    return line


def main(way: str, name: str, side: str, batches: str, dtype: str) -> None:
    """What the process does."""
    counts = [int(count) for count in batches.split(",")]
    shape = (counts[-1], int(side), int(side), 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if way == OURS:
        from normjax.bench import our_models

        keep_freed_memory()
        size, calls = our_models.measured(name, images, counts, dtype)
    else:
        from normjax.bench import torch_models

        size, calls = None, torch_models.calls(way, name, images, counts, dtype)
    print(json.dumps([size, list(calls)]), flush=True)
    in_order = list(calls.values())
    for line in sys.stdin:
        in_order[int(line)]()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
