"""Steps a second of the whole loop against the bare jitted step."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from normjax.bench.sizes import device_name
from normjax.cli.flags import define_config, parse_flags
from normjax.core.console import console
from normjax.devices.signals import Interrupt
from normjax.records import report
from normjax.records.checkpoint import Checkpoints
from normjax.tasks.base import percent
from normjax.train.experiment import build_experiment
from normjax.train.loop import Run
from normjax.train.phases import trace_phase

ROUNDS = 5


def loop_command(argv: Sequence[str]) -> int:
    """`loop --config=FILE[:ARGUMENTS]`: `total_steps / 5` steps of each, in turns."""
    about = loop_command.__doc__
    given = parse_flags(argv, define_config, about, overrides=True)
    loop, bare = measure(given.config())
    rows = [
        ("bare step, one batch", 1e3 * bare, 1 / bare),
        ("whole loop", 1e3 * loop, 1 / loop),
    ]
    report.table(f"{device_name()}: host overhead", ("", "ms a step", "steps/s"), rows)
    console.print(f"loop at {percent(bare / loop)} of the bare step")
    return 0


def measure(config: Any) -> tuple[float, float]:
    """Median seconds of a step in the loop (data, transfer, logging) and alone.

    Evaluation and checkpoints are left out: they are not part of a step.
    """
    config.eval_every = config.checkpoint.every = config.total_steps + 1
    steps = max(config.total_steps // ROUNDS, 1)
    experiment = build_experiment(config)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        run = Run(experiment, Path(folder), checkpoints, trace_phase(experiment))
        step_fn = run.train_step
        log = report.MetricLog(run.workdir, 0)
        batch = next(experiment.train_batches())
        loop, bare = [], []
        for _ in range(ROUNDS):
            step_fn.begin(run.state, steps)
            begin = time.perf_counter()
            for _ in range(steps):
                run.state, _ = step_fn(run.state, batch)
            jax.block_until_ready(run.state)
            bare.append((time.perf_counter() - begin) / steps)
            begin = time.perf_counter()
            run.advance(log, Interrupt(), run.step + steps)
            jax.block_until_ready(run.state)
            loop.append((time.perf_counter() - begin) / steps)
        log.close()
        step_fn.close()
        checkpoints.close()
    return float(np.median(loop)), float(np.median(bare))
