"""Evaluate a run: `python eval.py --help`."""

import sys

from normjax.cli.main import eval_command, run

if __name__ == "__main__":
    sys.exit(run(eval_command, sys.argv, several=True))
