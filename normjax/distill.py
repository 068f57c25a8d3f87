"""Stored answers of a teacher: `python -m normjax.distill --help`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from normjax.cli.flags import define_config, define_workdir, parse_flags
from normjax.cli.main import run
from normjax.core.paths import local_path


def distill_command(argv: Sequence[str]) -> int:
    """What a run answers to the images that another run is to see, stored.

    python -m normjax.distill --workdir=TEACHER --config=FILE[:ARGUMENTS] RECORDS

    Goes through the batches of a run of --config, augmented as in training, and writes
    the largest probabilities of the teacher (TinyViT's records: 4 + 4 --largest bytes
    an image) into the new folder RECORDS. The run then learns from them alone, without
    the teacher: train.py --config=... --config.distill.records=RECORDS.
    """

    def define(values: flags.FlagValues) -> None:
        define_config(values)
        define_workdir(values)
        flags.DEFINE_integer(
            "largest", 5, "probabilities of an image", flag_values=values
        )

    doc = distill_command.__doc__
    given = parse_flags(argv, define, doc, files="RECORDS", overrides=True)
    folder = local_path("records", given.files[0])
    _write(given.workdir(), given.config(), folder, given.flags.largest)
    return 0


def _write(workdir: Path, config: Any, folder: Path, largest: int) -> None:
    from normjax.core.console import console
    from normjax.train.experiment import build_experiment, build_model
    from normjax.train.recorded import write_records
    from normjax.train.rules import asked

    with config.unlocked():
        config.distill.records = str(folder)
        asked(config)  # that it may learn from them
        config.distill.records = ""
    experiment = build_experiment(config)
    count = write_records(experiment, workdir, build_model, folder, largest)
    console.print(f"{count:,} records of {workdir} in {folder}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run(distill_command, sys.argv))
