"""Torch in a process of its own, to be timed in turns with ours.

In one process the thread pools and the memory of each disturb the other.

`python -m normjax.bench.torch_process SIDE BATCHES NAME ...` prints what it can call as
one line of JSON, a list of (name, way, kind); then, for each line with an index on
stdin, it makes that call and prints a line.
"""

import contextlib
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Calls = dict[tuple[str, str, str], Callable[[], None]]


@contextlib.contextmanager
def torch_calls(
    names: Sequence[str], side: int, batches: Sequence[int]
) -> Iterator[Calls]:
    """What to time of models that are written in torch, by (name, way, kind).

    None without torch. The process ends with the context.

    Args:
      names: of any models.  side: of the images.  batches: how many at once; of the
        last number there is a training step as well.
    """
    if importlib.util.find_spec("torch") is None:
        yield {}
        return
    counts = ",".join(map(str, batches))
    command = [sys.executable, "-m", __name__, str(side), counts, *names]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        keys = [tuple(key) for key in json.loads(_answer(process))]
        yield {k: functools.partial(_ask, process, i) for i, k in enumerate(keys)}
        process.communicate()


def _ask(process: subprocess.Popen, index: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{index}\n")
    process.stdin.flush()
    _answer(process)


def _answer(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process with torch ended, code {process.wait()}")
    return line


def main(side: str, batches: str, *names: str) -> None:
    """What the process does."""
    from normjax.bench import torch_models

    counts = [int(count) for count in batches.split(",")]
    shape = (counts[-1], int(side), int(side), 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    calls = {
        (name, *key): call
        for name in names
        if name in torch_models.MODELS
        for key, call in torch_models.calls(name, images, counts).items()
    }
    print(json.dumps(list(calls)), flush=True)
    in_order = list(calls.values())
    for line in sys.stdin:
        in_order[int(line)]()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
