"""Measure on this machine.

python -m normjax.bench loop --config=configs/digits.py   what the loop adds to a step
python -m normjax.bench norms [NAME ...]                  norms beside flax and torch
"""

import sys
from collections.abc import Sequence

from normjax.core.errors import UserError, one_of
from normjax.train.cli import run

COMMANDS = ("loop", "norms")


def bench_command(argv: Sequence[str]) -> int:
    """Dispatch on the first argument; the rest is the command's own."""
    if len(argv) < 2:
        raise UserError(f"python -m normjax.bench {'|'.join(COMMANDS)}")
    if argv[1] == "loop":
        from normjax.bench.loop import loop_command

        return loop_command(argv[1:])
    if argv[1] == "norms":
        from normjax.bench.norms import norms_command

        return norms_command(argv[1:])
    raise UserError(one_of("benchmark", argv[1], COMMANDS))


if __name__ == "__main__":
    sys.exit(run(bench_command, sys.argv))
