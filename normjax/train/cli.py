"""The commands behind train.py and eval.py: flags in, exit code out."""

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from normjax.core.errors import LoadingFailed, UserError
from normjax.train.config import define_config, parse_flags
from normjax.train.host import keep_freed_memory

EXIT_USER_ERROR = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again and it goes on


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command; a wrong input becomes one line on stderr and exit code 2."""
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: names may be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    # Orbax logs the tracebacks of what it raises, too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return command(argv)
    except UserError as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)
        return EXIT_USER_ERROR
    except LoadingFailed as error:
        print(f"error: {error}", file=sys.stderr)
        _leave_the_others(EXIT_FAILED)
        return EXIT_FAILED
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            print("error:", _out_of_memory(error), file=sys.stderr)
        else:
            traceback.print_exc()
        _leave_the_others(EXIT_FAILED)
        return EXIT_FAILED


def _out_of_memory(error: Exception) -> str:
    reason = (str(error).splitlines() or ["not enough of it"])[0][:200]
    return (
        f"out of memory ({reason}); less is needed with a smaller config.batch_size, "
        "more config.microbatches, config.model.remat or config.mesh.fsdp; "
        "python -m normjax.plan says how much"
    )


def _leave_the_others(code: int) -> None:
    """End at once, if this is one process of several.

    At its usual end it would wait for the others, which wait for it in the step.
    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train_command(argv: Sequence[str]) -> int:
    """`train.py --config=FILE[:ARGUMENTS] --workdir=DIR [--config.field=value ...]`."""

    def define(values: flags.FlagValues) -> None:
        define_config(values, argv)
        _define_workdir(values)

    values = parse_flags(argv, define)
    if values.config is None:
        raise UserError("--config is required, such as --config=configs/digits.py")
    from normjax.train.checkpoint import RunFailed
    from normjax.train.distributed import initialize
    from normjax.train.loop import train

    initialize()
    try:
        scores = train(values.config, _workdir(values))
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_INTERRUPTED if scores is None else 0


def eval_command(argv: Sequence[str]) -> int:
    """`eval.py --workdir=DIR [--split=NAME] [--fold] [--best]`, or

    `eval.py --workdir=DIR --adapt=NAME[,NAME] [--split=NAME] [--corruption=KIND]
    [--severity=5] [--stream=iid|correlated] [--images=N]`.
    """

    def define(values: flags.FlagValues) -> None:
        _define_workdir(values)
        flags.DEFINE_string("split", None, "split; default: the config's", values)
        flags.DEFINE_bool("fold", False, "compare with the folded model", values)
        flags.DEFINE_bool("best", False, "best checkpoint, not the newest", values)
        flags.DEFINE_list("adapt", [], "test-time adaptations to compare", values)
        flags.DEFINE_string("corruption", "", "of the images, with --adapt", values)
        flags.DEFINE_integer("severity", 5, "1 to 5", flag_values=values)
        flags.DEFINE_string("stream", "iid", "order, with --adapt", values)
        flags.DEFINE_integer("images", 0, "of the split; 0: all", flag_values=values)

    values = parse_flags(argv, define)
    from normjax.train.distributed import initialize
    from normjax.train.evaluate_run import evaluate_run

    initialize()
    if values.adapt:
        from normjax.train.adapt_run import Stream, adapt_run

        stream = Stream(
            split=values.split or "",
            corruption=values.corruption,
            severity=values.severity,
            order=values.stream,
            images=values.images,
        )
        adapt_run(_workdir(values), values.adapt, stream)
        return 0
    evaluate_run(
        _workdir(values), split=values.split, fold=values.fold, best=values.best
    )
    return 0


def _define_workdir(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)


def _workdir(values: flags.FlagValues) -> Path:
    if not values.workdir:
        raise UserError("--workdir is required, such as --workdir=runs/digits")
    return Path(values.workdir)
