"""The commands behind train.py and eval.py: flags in, exit code out."""

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from normjax.cli.flags import (
    CommandLine,
    HelpWanted,
    define_config,
    define_published,
    define_workdir,
    parse_flags,
)
from normjax.cli.host import answer_libtpu, keep_freed_memory, may_have_tpu
from normjax.core.errors import LoadingFailed, RunFailed, UserError
from normjax.core.paths import local_path
from normjax.devices.signals import EXIT_ENDED

EXIT_USER_ERROR = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again and it goes on


def run(
    command: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    *,
    several: bool = False,
) -> int:
    """Run a command; what is wrong becomes one line on stderr and an exit code.

    Of several processes all end with the code of the one that fails first.

    Args:
      several: whether processes that are started together run the command together.
    """
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: names may be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    if not may_have_tpu():
        answer_libtpu()
    # Orbax logs the tracebacks of what it raises, and what it leaves behind, too.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        code, line = command(argv), ""
    except HelpWanted as text:
        print(text)
        return 0
    except UserError as error:
        code, line = EXIT_USER_ERROR, " ".join(str(error).splitlines())
    except (LoadingFailed, RunFailed) as error:
        code, line = EXIT_FAILED, str(error)
    except KeyboardInterrupt:
        print("\nended by Ctrl-C", file=sys.stderr)
        return _end(EXIT_ENDED, "ended by Ctrl-C", False)
    except Exception as error:
        code, line = EXIT_FAILED, _out_of_memory(error)
        together = _group()
        if not line and not (together and together.failed()):
            traceback.print_exc()
            line = "".join(traceback.format_exception_only(error)).strip()
            return _end(code, line, several)
    if line:
        print("error:", line, file=sys.stderr)
    return _end(code, line, several)


def _group() -> Any:
    """The processes that have joined this one."""
    distributed = sys.modules.get("normjax.devices.processes")
    return distributed.group() if distributed else None


def _end(code: int, line: str, several: bool) -> int:
    """End as the other processes do, if there are any."""
    if several and line:  # perhaps before they were joined: they wait for this one
        from normjax.devices.processes import initialize

        with contextlib.suppress(Exception):
            initialize()
    together = _group()
    if together and code in (0, EXIT_INTERRUPTED):
        together.succeed()
    elif together:
        together.fail(code, line)
    return code


def _out_of_memory(error: Exception) -> str:
    """What to do about it; "" of another error."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return ""
    reason = (str(error).splitlines() or ["not enough of it"])[0][:200]
    return (
        f"out of memory ({reason}); less is needed with a smaller config.batch_size, "
        "more config.microbatches, config.model.remat or config.mesh.fsdp; "
        "python -m normjax.plan says how much"
    )


def train_command(argv: Sequence[str]) -> int:
    """Train a model, or go on where the run in a folder stopped.

    python train.py --config=configs/digits.py:norm=prepbn,mixer=sla --workdir=runs/a \\
        --config.optim.lr=1e-3
    python train.py --workdir=runs/a

    The first command again, or --workdir alone, goes on exactly where the run stopped;
    with --config.FIELD=VALUE of fields that change nothing in what is learned, such as
    data.path, eval_every and mesh.fsdp. A larger config.total_steps extends the run:
    the learning rate follows the schedule of the new total from there on, warmups and
    the decays of norms stay as long as they were.
    `python -m normjax.train` is the same command.
    Exit codes: 0 done, 1 training failed, 2 wrong input, 75 stopped by a signal with a
    checkpoint saved.
    """

    def define(values: flags.FlagValues) -> None:
        define_config(values)
        define_workdir(values)

    given = parse_flags(argv, define, train_command.__doc__, overrides=True)
    from normjax.devices.processes import initialize
    from normjax.train.config import config_exists, kept_config
    from normjax.train.extend import extended
    from normjax.train.loop import train

    alone = not given.flags.config and given.flags.workdir
    if alone and config_exists(given.workdir()):
        config = kept_config(given.workdir(), given.overrides)
    else:
        config = given.config()
    workdir = given.workdir()
    initialize()
    scores = train(extended(config, workdir), workdir)
    return EXIT_INTERRUPTED if scores is None else 0


_OF_WEIGHTS = ("weights", "averaged", "data", "classes", "image_size")
_OF_RUNS = ("workdir", "best", "adapt", "corruption", "severity", "stream", "images")
_OF_RUNS = (*_OF_RUNS, "temperature")
"""Flags of eval.py that go with --model, and those that do not."""


def eval_command(argv: Sequence[str]) -> int:
    """Evaluate a run, folded and unfolded, or adapted to what it was not trained for.

    python eval.py --workdir=runs/a [--split=test] [--best] [--fold]
        [--temperature=SPLIT]
    python eval.py --workdir=runs/a --corruption=jpeg [--severity=5] [--images=2000]
    python eval.py --workdir=runs/a --adapt=tent,lame [--stream=correlated]

    Or published weights, on a folder of images with one folder a class:

    python eval.py --model=swin_tiny --weights=FILE --data=imagenet/val [--fold]
        [--image_size=256] [--classes=FILE] [--split=validation]

    Top-1, top-5, negative log likelihood (nats) and expected calibration error of
    images, with --fold also of the model whose norms are merged into their neighbours.
    --temperature fits one on another split, prints errors of calibration before and
    behind it and draws reliability.png.
    Where the data of a run have moved, --config.data.path=... says where they are.
    Published weights see images as their family does: resized, cropped and normalised.
    The order of the classes is that of their sorted names, as ImageNet's is of wnids,
    or of the lines of --classes (names, wnids, both, or JSON).
    `python -m normjax.eval` is the same command.
    """
    given = parse_flags(argv, _define_eval, eval_command.__doc__, overrides=True)
    values = given.flags
    if values.model:
        return _published(given)
    given.refuse(_OF_WEIGHTS, "without --model")
    workdir = given.workdir()
    streamed = values.adapt or values.corruption is not None
    if not values.adapt:
        given.refuse(["stream"], "without --adapt")
    if values.corruption is None:
        given.refuse(["severity"], "without --corruption")
    if streamed:
        given.refuse(["fold", "temperature"], "with --adapt or --corruption")
    else:
        given.refuse(["images"], "without --adapt or --corruption")
    if values.corruption is not None:
        from normjax.data.corrupt import check_corruption

        check_corruption(values.corruption, values.severity)
    from normjax.devices.processes import initialize
    from normjax.evaluation.run import evaluate_run

    initialize()
    if not streamed:
        which = {"split": values.split, "fold": values.fold, "best": values.best}
        fitted = values.temperature or ""
        evaluate_run(workdir, temperature=fitted, overrides=given.overrides, **which)
        return 0
    _over_stream(given)
    return 0


def _over_stream(given: CommandLine) -> None:
    """A run over a stream of batches, adapted or not."""
    from normjax.evaluation.adapt import Stream, adapt_run

    values = given.flags
    stream = Stream(
        split=values.split or "",
        corruption=values.corruption or "",
        severity=values.severity,
        order=values.stream,
        images=values.images,
    )
    told = {"best": values.best, "overrides": given.overrides}
    adapt_run(given.workdir(), values.adapt, stream, **told)


def _define_eval(values: flags.FlagValues) -> None:
    define_workdir(values)
    flags.DEFINE_string("split", None, "split; default: the config's", values)
    flags.DEFINE_bool("fold", False, "compare with the folded model", values)
    flags.DEFINE_bool("best", False, "best checkpoint, not the newest", values)
    flags.DEFINE_string("temperature", None, "split to fit a temperature on", values)
    flags.DEFINE_list("adapt", [], "test-time adaptations to compare", values)
    flags.DEFINE_string("corruption", None, "of the images", values)
    flags.DEFINE_integer("severity", 5, "1 to 5", flag_values=values)
    flags.DEFINE_string("stream", "iid", "order: iid or correlated", values)
    flags.DEFINE_integer("images", 0, "so many; 0: all", 0, flag_values=values)
    define_published(values)
    flags.DEFINE_string("data", None, "folder, zip or tar of images", values)
    flags.DEFINE_string("classes", "", "file of class names in order", values)


def _published(given: CommandLine) -> int:
    """Weights of a file, without a run."""
    values = given.flags
    given.refuse(_OF_RUNS, "with --model")
    for name in ("weights", "data"):
        if not values[name].value:
            raise UserError(f"--model needs --{name}: see --help")
    from normjax.devices.processes import initialize
    from normjax.evaluation.published import evaluate_published

    initialize()
    evaluate_published(
        values.model,
        local_path("weights", values.weights),
        local_path("data", values.data),
        split=values.split or "",
        classes=values.classes,
        side=values.image_size,
        averaged=values.averaged,
        fold=values.fold,
        overrides=given.overrides,
    )
    return 0
