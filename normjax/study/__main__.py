"""Run a study: `python -m normjax.study FILE --workdir=DIR [--only=REGEX]`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from normjax.core.errors import UserError
from normjax.train.cli import run
from normjax.train.config import load_module, parse_flags


def study_command(argv: Sequence[str]) -> int:
    """Every run of the file's `get_study()`; those that are done are not repeated."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "folder of the study", values)
        flags.DEFINE_string("only", "", "regular expression on row/column", values)

    files = [arg for arg in argv[1:] if not arg.startswith("-")]
    values = parse_flags([a for a in argv if a not in files], define)
    if len(files) != 1 or not values.workdir:
        raise UserError("python -m normjax.study FILE --workdir=DIR [--only=REGEX]")
    try:
        only = re.compile(values.only)
    except re.error as error:
        raise UserError(f"--only={values.only!r}: {error}") from None
    study, workdir = load_module(files[0], "get_study"), Path(values.workdir)
    from normjax.study.study import run_study

    run_study(study, workdir, only)
    return 0


if __name__ == "__main__":
    sys.exit(run(study_command, sys.argv))
