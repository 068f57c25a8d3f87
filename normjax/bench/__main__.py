"""Measure on this machine.

python -m normjax.bench loop --config=configs/digits.py   what the loop adds to a step
python -m normjax.bench norms [NAME ...]                  norms beside flax and torch
python -m normjax.bench mixers [NAME ...]                 time and memory by tokens
python -m normjax.bench models [PRESET ...]               inference and training step
python -m normjax.bench fold [PRESET[:NORM] ...]          folded beside no norms at all
python -m normjax.bench conv_bn [PRESET ...]              the modes of ConvBN blocks
python -m normjax.bench decoders [PRESET ...]             tokens a second, folded or not
"""

import importlib
import inspect
import sys
from collections.abc import Sequence

from normjax.core.errors import UserError, one_of
from normjax.train.cli import run
from normjax.train.flags import HELP, HelpWanted

COMMANDS = ("loop", "norms", "mixers", "models", "decoders", "fold", "conv_bn")


def bench_command(argv: Sequence[str]) -> int:
    """Dispatch on the first argument; the rest is the command's own."""
    if len(argv) < 2:
        raise UserError(f"python -m normjax.bench {'|'.join(COMMANDS)}")
    name, *rest = argv[1:]
    if name in HELP:
        raise HelpWanted(__doc__)
    if name not in COMMANDS:
        raise UserError(one_of("benchmark", name, COMMANDS))
    module = importlib.import_module(f"normjax.bench.{name}")
    command = getattr(module, f"{name}_command")
    if set(rest) & set(HELP):
        raise HelpWanted(inspect.getdoc(command))
    return command(argv[1:])


if __name__ == "__main__":
    sys.exit(run(bench_command, sys.argv))
