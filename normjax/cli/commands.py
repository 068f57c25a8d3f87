"""One command for all of them: `normjax train`, or `python -m normjax train`."""

import runpy
import sys
from collections.abc import Sequence

from normjax.core.errors import UserError, one_of

COMMANDS = {
    "train": "train a model, or go on with a run",
    "eval": "evaluate a run, or published weights on a folder of images",
    "predict": "the likeliest classes of images",
    "analysis": "pictures of what answers look at",
    "generate": "text of a trained language model",
    "convert": "published PyTorch weights in, and back",
    "probe": "k-NN and linear probes of frozen features",
    "distill": "stored answers of a run, that another one learns from",
    "prune": "a run that begins with the pruned weights of another",
    "quantize": "scores of a run in fewer bits",
    "export": "a trained model as one file that JAX alone can run",
    "plan": "memory and step time of machines that need not be there",
    "study": "many runs, and a table of them",
    "bench": "measure on this machine",
    "models": "the named models: their sizes and published accuracies",
    "data": "the cache of prepared data",
    "config": "every field of a config",
}
"""What `python -m normjax.NAME` runs, and what it does."""

HELP = ("help", "--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names with all others.

    Args:
      argv: with the program's name first; default: those of this process.

    Returns:
      2 after one line on stderr if there is no such command. A command that is found
      ends the process with its own code.

    Example:
      >>> from normjax.cli.commands import main
      >>> main(["normjax", "--help"])  # doctest: +ELLIPSIS
      normjax COMMAND [ARGUMENT ...]; normjax COMMAND --help tells more.
      ...
      0
    """
    argv = sys.argv if argv is None else argv
    name = argv[1] if len(argv) > 1 else "help"
    if name in HELP:
        print(_help())
        return 0
    if name not in COMMANDS:
        error = UserError(one_of("command", name, COMMANDS))
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv = [f"normjax {name}", *argv[2:]]
    runpy.run_module(f"normjax.{name}", run_name="__main__")
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    about = "normjax COMMAND [ARGUMENT ...]; normjax COMMAND --help tells more."
    return "\n".join([about, "", *rows])
