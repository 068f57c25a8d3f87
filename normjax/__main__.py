"""All commands: `python -m normjax --help`."""

import sys

from normjax.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
