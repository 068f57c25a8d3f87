"""The cache of prepared data.

python -m normjax.data [--kind=image_folder] [--data_dir=DIR]
python -m normjax.data [--kind=decoded,text] [--older_than=DAYS] clear

The first shows what is prepared and how much room it takes, the second removes it.
Nothing is lost but time: the data are prepared again when a run needs them. No run
that reads them should be going on.
"""

import sys
from collections.abc import Sequence

from absl import flags

from normjax.cli.flags import parse_flags
from normjax.cli.main import run
from normjax.core.console import console
from normjax.core.errors import UserError, one_of
from normjax.data.cache import DEPTHS, entries, remove
from normjax.data.prepared import cache_dir
from normjax.records import report

CLEAR = "clear"


def data_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        where = "of the cache; default: NORMJAX_DATA_DIR, else ~/.cache/normjax"
        flags.DEFINE_string("data_dir", None, where, flag_values=values)
        flags.DEFINE_list(
            "kind", [], f"some of {', '.join(DEPTHS)}", flag_values=values
        )
        flags.DEFINE_float("older_than", 0.0, "days", 0.0, flag_values=values)

    argv = list(argv)
    asked = argv[1:].count(CLEAR)
    given = parse_flags([a for a in argv if a != CLEAR], define, __doc__).flags
    for kind in given.kind:
        if kind not in DEPTHS:
            raise UserError(one_of("kind", kind, DEPTHS))
    cache = cache_dir(given.data_dir)
    found = [
        entry
        for entry in entries(cache)
        if entry.kind in (given.kind or DEPTHS) and entry.days >= given.older_than
    ]
    total = sum(entry.num_bytes for entry in found) / 1e6
    if not asked:
        rows = [
            (
                entry.kind,
                str(entry.path.relative_to(cache / entry.kind)),
                f"{entry.num_bytes / 1e6:,.1f}",
                f"{entry.days:.1f}",
            )
            for entry in found
        ]
        title = f"{cache}: {total:,.1f} MB"
        report.table(title, ("kind", "name", "MB", "days old"), rows)
        return 0
    for entry in found:
        try:
            remove(entry)
        except OSError as error:
            raise UserError(f"cannot remove {str(entry.path)!r} ({error})") from None
    console.print(f"{cache}: {len(found)} sets removed, {total:,.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(data_command, sys.argv))
