"""Probes of frozen features: `python -m normjax.probe --help`."""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from normjax.cli.flags import (
    CommandLine,
    define_published,
    define_workdir,
    parse_flags,
)
from normjax.cli.main import run
from normjax.core.errors import UserError
from normjax.core.paths import local_path


def probe_command(argv: Sequence[str]) -> int:
    """What the features of a frozen model tell of classes: k-NN and a linear probe.

    python -m normjax.probe --workdir=runs/a [--best] [--data=FOLDER] [--split=test]
    python -m normjax.probe --model=swin_tiny --weights=FILE --data=FOLDER

    Features are what goes into the head, of images as in evaluation. Both probes are
    fitted to the training split and tested on --split, of the run's data or of an image
    folder whose classes may be others. k-NN votes by cosine similarity,
    the linear probe is logistic regression, whose strength a fifth of the training
    features chooses.
    """
    given = parse_flags(argv, _define, probe_command.__doc__, overrides=True)
    values = given.flags
    try:
        neighbors = [int(k) for k in values.neighbors]
    except ValueError:
        neighbors = []
    if not neighbors or min(neighbors) < 1:
        wrong = ",".join(values.neighbors)
        raise UserError(f"--neighbors={wrong}: give numbers from 1")
    frozen = _frozen(given)
    from normjax.evaluation.probe import probe
    from normjax.records import report

    data = frozen.config.data
    split = values.split or data.eval_split
    found = probe(frozen, neighbors, split)
    title = f"{frozen.title}, {data.path or data.name}, split {split}"
    rows = [(name, f"{100 * score:.2f} %") for name, score in found.items()]
    report.table(title, ("probe", "top-1"), rows)
    return 0


def _define(values: flags.FlagValues) -> None:
    define_workdir(values)
    flags.DEFINE_bool("best", False, "best checkpoint, not the newest", values)
    define_published(values)
    flags.DEFINE_string("data", "", "image folder; default: the run's data", values)
    flags.DEFINE_string("split", None, "split; default: the config's", values)
    flags.DEFINE_list("neighbors", ["1", "5", "20"], "k of k-NN", values)


def _frozen(given: CommandLine) -> Any:
    """The model of the command line.

    Raises:
      UserError: none or two are named, or it cannot be read.
    """
    values = given.flags
    if bool(values.workdir) == bool(values.model):
        raise UserError("give one of --workdir and --model: see --help")
    from normjax.evaluation.probe import of_run, of_weights

    if values.workdir:
        given.refuse(["weights", "averaged", "image_size"], "without --model")
        workdir, folder = given.workdir(), values.data
        return of_run(workdir, folder, best=values.best, overrides=given.overrides)
    given.refuse(["best"], "without --workdir")
    if not values.weights or not values.data:
        raise UserError("--model needs --weights and --data: see --help")
    weights = local_path("weights", values.weights)
    how = {"side": values.image_size, "averaged": values.averaged}
    return of_weights(
        values.model, weights, values.data, **how, overrides=given.overrides
    )


if __name__ == "__main__":
    sys.exit(run(probe_command, sys.argv))
