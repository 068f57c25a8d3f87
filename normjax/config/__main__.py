"""Print every field of a config: its default, what is allowed, what it means.

python -m normjax.config > docs/config.md
"""

import sys
from collections.abc import Sequence

from normjax.cli.flags import parse_flags
from normjax.cli.main import run
from normjax.config.reference import reference


def config_command(argv: Sequence[str]) -> int:
    """See the head of the file."""
    parse_flags(argv, lambda values: None, __doc__)
    print(reference(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run(config_command, sys.argv))
