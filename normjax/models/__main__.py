"""The named models: their size, what they compute, and what they are published with.

python -m normjax.models
python -m normjax.models --family=gcvit
python -m normjax.models --name=tiny --at_most=30

Parameters are those of 1000 classes, multiply-adds those of one image of so many pixels
a side, top-1 that of the published weights on ImageNet-1k's validation images; empty
cells are not known here. Train one by configs/finetune.py:PRESET, evaluate its weights
by eval.py --model=PRESET --weights=FILE.
"""

import math
import sys
from collections.abc import Sequence

from absl import flags

from normjax.cli.flags import parse_flags
from normjax.cli.main import run
from normjax.core.errors import UserError, one_of
from normjax.families import FAMILIES, PRESETS
from normjax.families.listing import COLUMNS, rows
from normjax.records import report


def models_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        size = {"lower_bound": 0.0, "flag_values": values}
        flags.DEFINE_string("family", "", "of this family", flag_values=values)
        flags.DEFINE_string("name", "", "with this in the name", flag_values=values)
        flags.DEFINE_float("at_least", 0.0, "1e6 parameters", **size)
        flags.DEFINE_float("at_most", math.inf, "1e6 parameters", **size)

    given = parse_flags(argv, define, __doc__).flags
    if given.family and given.family not in FAMILIES:
        raise UserError(one_of("family", given.family, FAMILIES))
    if given.name and not any(given.name in preset for preset in PRESETS):
        raise UserError(one_of("preset", given.name, PRESETS))
    found = rows(given.family, given.name, given.at_least, given.at_most)
    if not found:
        raise UserError("no preset is of that family, name and size")
    report.table("", COLUMNS, found)
    return 0


if __name__ == "__main__":
    sys.exit(run(models_command, sys.argv))
