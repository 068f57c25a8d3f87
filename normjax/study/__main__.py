"""Run studies: every run of a file's `get_study()`, a table and verdicts on claims.

python -m normjax.study NAME|all --workdir=DIR [--only=REGEX] [--budget=MINUTES]
                                 [--processes=N] [--share=I/N]

NAME is a file, or the name of one of ours, such as digits_norms; all are those of ours
that test what papers claim. Runs that are done are not repeated.

--budget: leaves out seeds, and steps if one seed alone would take longer.
--processes: share the runs out among processes, each with devices of its own.
--share: run only every N-th run, from I, as one of several machines, without a report;
the same command without it writes that.
"""

import math
import re
import sys
from collections.abc import Sequence

from absl import flags

from normjax.cli.flags import define_workdir, parse_flags
from normjax.cli.main import run
from normjax.config.recipes import RECIPES, load_module
from normjax.core.errors import UserError

ALL = "all"


def study_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        define_workdir(values)
        flags.DEFINE_string("only", "", "regular expression on row/column", values)
        flags.DEFINE_float("budget", math.inf, "minutes", flag_values=values)
        flags.DEFINE_integer("processes", 1, "that share the runs", flag_values=values)
        flags.DEFINE_string("share", "", "I/N: every N-th run, from I", values)

    given = parse_flags(argv, define, __doc__, files="NAME")
    values, workdir = given.flags, given.workdir()
    try:
        only = re.compile(values.only)
    except re.error as error:
        raise UserError(f"--only={values.only!r}: {error}") from None
    if not values.budget > 0:
        raise UserError(f"--budget={values.budget}: want minutes, more than 0")
    if values.processes < 1:
        raise UserError(f"--processes={values.processes}: want at least 1")
    if values.share:
        given.refuse(["processes"], "with --share")
    name = given.files[0]
    from normjax.study import together
    from normjax.study.processes import parse_share
    from normjax.study.study import as_study

    files = (
        study_files()
        if name == ALL
        else {together.ALONE: study_files().get(name, name)}
    )
    studies = {k: as_study(load_module(v, "get_study")) for k, v in files.items()}
    if name == ALL:
        studies = {key: study for key, study in studies.items() if study.claims}
    if values.share:
        share = parse_share(values.share)
        together.run_together(studies, workdir, only, values.budget, share)
        return 0
    if values.processes > 1:
        together.run_in_processes(
            name, studies, workdir, values.processes, only, values.budget
        )
    else:
        together.run_together(studies, workdir, only, values.budget)
    together.report_together(studies, workdir)
    return 0


def study_files() -> dict[str, str]:
    """Our studies by their names."""
    return {
        path.stem: str(path)
        for path in sorted((RECIPES / "studies").glob("*.py"))
        if path.stem not in ("__init__", "common")
    }


if __name__ == "__main__":
    sys.exit(run(study_command, sys.argv))
