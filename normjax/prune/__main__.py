"""A run that begins with the pruned weights of another.

python -m normjax.prune --workdir=DIR --config=FILE[:ARGUMENTS] --sparsity=0.9 NEW_DIR

Takes the newest checkpoint of the run in DIR, sets the smallest entries of its kernels
to 0 and writes them as the start of a run of --config, to be trained by
`train.py --config=... --workdir=NEW_DIR`. With configs/perp.py that retrains a part of
it, norms and biases say, so that what is 0 stays 0. Adapters of --config (`reparam`)
are new.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from normjax.cli.flags import define_config, define_workdir, parse_flags
from normjax.cli.main import run
from normjax.core.errors import UserError
from normjax.core.paths import workdir_path
from normjax.prune.magnitude import magnitude_pruned


def prune_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        define_config(values)
        define_workdir(values)
        flags.DEFINE_float("sparsity", None, "share of zeros", flag_values=values)

    given = parse_flags(argv, define, __doc__, files="NEW_DIR", overrides=True)
    workdir, config = given.workdir(), given.config()
    if given.flags.sparsity is None:
        raise UserError("--sparsity is required, such as --sparsity=0.9")
    _prune(workdir, config, given.flags.sparsity, workdir_path(given.files[0]))
    return 0


def _prune(workdir: Path, config: Any, sparsity: float, target: Path) -> None:
    import jax

    from normjax import reparam
    from normjax.core.collections import PARAMS
    from normjax.core.scanned import scanned_of
    from normjax.records import report
    from normjax.records.arrays import check_same_arrays
    from normjax.records.datasets import check_classes
    from normjax.train.experiment import build_experiment
    from normjax.train.start import saved_variables, start_from

    variables = saved_variables(workdir)
    experiment = build_experiment(config)
    check_classes(experiment.task, workdir)
    state, scanned = experiment.abstract_state(), scanned_of(experiment.model)
    rules = getattr(experiment.model, "rules", ())
    key = jax.random.key(config.seed)
    check_same_arrays(
        reparam.attach(rules, variables, key) if rules else variables,
        state.variables(),
        f"the run in {workdir} is not of the model of --config",
    )
    pruned = magnitude_pruned(variables[PARAMS], sparsity, scanned)
    start = {**variables, PARAMS: pruned.params}
    if rules:  # made of the pruned kernels
        start = reparam.attach(rules, start, key)
    start_from(config, start, target, experiment.task.description(), scanned)
    rows = [(path, zeros / size, size) for path, (zeros, size) in pruned.zeros.items()]
    zeros, size = (sum(column) for column in zip(*pruned.zeros.values(), strict=True))
    rows.append(("all", zeros / size, size))
    title = f"{workdir} -> {target}"
    report.table(title, ("kernel", "share of zeros", "entries"), rows)


if __name__ == "__main__":
    sys.exit(run(prune_command, sys.argv))
