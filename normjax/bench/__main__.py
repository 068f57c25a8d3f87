"""Measure on this machine.

python -m normjax.bench loop --config=configs/digits.py   what the loop adds to a step
python -m normjax.bench norms [NAME ...]                  norms beside others'
python -m normjax.bench cores [NAME ...]                  attention at 1k to 64k tokens
python -m normjax.bench mixers [NAME ...]                 time and memory by tokens
python -m normjax.bench models [PRESET ...]               inference and training step
python -m normjax.bench fold [PRESET[:NORM] ...]          folded beside no norms at all
python -m normjax.bench conv_bn [PRESET ...]              the modes of ConvBN blocks
python -m normjax.bench decoders [PRESET ...]             tokens a second, folded or not
python -m normjax.bench optimizers [NAME ...]             an update beside AdamW's
python -m normjax.bench golden                            reference arrays, here
python -m normjax.bench tpu norms [NAME ...]              cycles of a TPU, without one
python -m normjax.bench gpu [SECTION ...]                 all about a GPU, in turns

--small makes norms, cores, models, optimizers, golden and gpu try themselves in
seconds.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence

from normjax.cli.flags import HELP, HelpWanted
from normjax.cli.main import run
from normjax.core.errors import UserError, one_of

TABLES = ("loop", "norms", "mixers", "cores", "models", "decoders", "fold", "conv_bn")
COMMANDS = (*TABLES, "optimizers", "golden", "tpu", "gpu")


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
