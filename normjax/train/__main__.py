"""Train a model from any folder: `python -m normjax.train --help`."""

import sys

from normjax.cli.main import run, train_command

if __name__ == "__main__":
    sys.exit(run(train_command, sys.argv, several=True))
