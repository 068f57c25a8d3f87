"""Runs that are made longer than they were."""

from pathlib import Path
from typing import Any

import jax

from normjax import optim
from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.paths import workdir_path
from normjax.devices.processes import from_first, is_first
from normjax.records import report
from normjax.records.folders import newest_step
from normjax.records.workdir import CHECKPOINTS
from normjax.train.config import config_exists, first_total, kept_config
from normjax.train.recalibrate import forget

EXTENDED = "extended_to"
"""Metric: updates of the whole run, where a start has raised their number."""


def extended(config: Any, workdir: Path) -> Any:
    """`config` as the run in `workdir` goes on with it, if there is one.

    A larger `total_steps` than the run's extends it. Fractions of a run stay fractions
    of the total that it began with (`fractions_of`): a norm's schedule that has ended
    has ended, and warmups are no longer than they were. The schedule of the learning
    rate runs to the new end.

    Raises:
      UserError: fewer steps than the run's.
    """
    if not config_exists(workdir):
        return config
    kept = kept_config(workdir)
    then, now = kept.total_steps, config.total_steps
    step = newest_step(workdir_path(workdir) / CHECKPOINTS)
    if now < then:
        raise UserError(
            f"config.total_steps={now:,}: the run in {workdir} has {then:,} steps, "
            f"{step or 0:,} of them done; more extend it, fewer need another --workdir"
        )
    longer = now > then and step is not None  # else there is nothing to extend
    first = first_total(kept) if longer else kept.fractions_of
    if config.get("fractions_of", 0) == 0 and first:
        with config.unlocked():
            config.fractions_of = first
    return config


def tell(experiment: Any, workdir: Path, state: Any, log: Any) -> None:
    """Print and log, once, that the run is longer than it was, and what that changes.

    Args:
      state: that it goes on from.
    """
    config, step = experiment.config, int(state.step)
    records = report.read_metrics(workdir) if is_first() else []
    said = [r[EXTENDED] for r in records if EXTENDED in r and r["step"] <= step]
    before = [first_total(config), *said][-1]
    if from_first(before == config.total_steps):
        return
    forget(workdir)  # what was recalibrated at the end that is none any more
    made = int(optim.updates_made(state.opt_state, jax.numpy.asarray(step)))
    rates = [r["lr"] for r in records if "lr" in r and r["step"] <= step]
    last = f", {rates[-1]:.3g} before" if rates else ""
    if is_first():
        console.print(
            f"extended from {before:,} to {config.total_steps:,} steps: the learning "
            f"rate follows the schedule of {config.total_steps:,} from step {step:,} "
            f"on ({float(experiment.schedule(made)):.3g}{last}); warmups and decays of "
            f"norms stay those of {first_total(config):,} steps",
            soft_wrap=True,
        )
    log.write(step, {EXTENDED: config.total_steps})
