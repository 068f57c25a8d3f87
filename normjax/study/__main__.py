"""Run a study: every run of a file's `get_study()`, and a table of them.

python -m normjax.study FILE --workdir=DIR [--only=REGEX]

FILE may be the name of one of ours, such as studies/digits_norms. Runs that are done
are not repeated.
"""

import re
import sys
from collections.abc import Sequence

from absl import flags

from normjax.cli.flags import define_workdir, parse_flags
from normjax.cli.main import run
from normjax.config.recipes import load_module
from normjax.core.errors import UserError


def study_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        define_workdir(values)
        flags.DEFINE_string("only", "", "regular expression on row/column", values)

    given = parse_flags(argv, define, __doc__, files="FILE")
    values, workdir = given.flags, given.workdir()
    try:
        only = re.compile(values.only)
    except re.error as error:
        raise UserError(f"--only={values.only!r}: {error}") from None
    study = load_module(given.files[0], "get_study")
    from normjax.study.study import run_study

    run_study(study, workdir, only)
    return 0


if __name__ == "__main__":
    sys.exit(run(study_command, sys.argv))
