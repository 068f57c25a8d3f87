"""A run of 2,000 steps that looks at its own process; prints what it saw as JSON.

python -m tests.train.hygiene FOLDER
"""

import collections
import gc
import json
import os
import sys
import threading
from pathlib import Path

import jax
import jax.monitoring

from normjax.cli.host import keep_freed_memory
from normjax.core.console import console
from normjax.train import loop
from tests.train.tiny import tiny_config

STEPS, EVERY, EARLY, WARM = 2000, 50, 200, 4
COMPILED = "/jax/core/compile/backend_compile_duration"


def resident():
    """Megabytes of memory that are resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def opened():
    """What the file descriptors of this process lead to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(found)


def run(workdir, steps, every):
    """Train; evaluation and checkpoint every so many steps."""
    config = tiny_config(total_steps=steps, recalibrate_batches=0)
    config.log_every = config.eval_every = config.checkpoint.every = every
    loop.train(config, workdir)
    gc.collect()


def main(folder):
    keep_freed_memory()
    steps, compiled, memory = 0, collections.Counter(), {}
    record = loop.Run._record

    def watched(self, step, *args):
        nonlocal steps
        steps = step
        if step in (EARLY, STEPS // 2, STEPS):
            memory[step] = resident()
        return record(self, step, *args)

    loop.Run._record = watched
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.update([steps] * (event == COMPILED))
    )
    console.quiet = True
    run(folder / "first", WARM, every=1)
    threads, files = set(threading.enumerate()), opened()
    steps = 0
    compiled.clear()
    run(folder / "second", STEPS, EVERY)
    print(
        json.dumps(
            {
                "memory": memory,
                "compiled": compiled,
                "threads": [str(t) for t in set(threading.enumerate()) - threads],
                "files": list(
                    collections.Counter(opened()) - collections.Counter(files)
                ),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
