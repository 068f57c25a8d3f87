"""A run in fewer bits: `python -m normjax.quantize --help`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from normjax.cli.flags import define_workdir, parse_flags
from normjax.cli.main import run
from normjax.core.errors import UserError

IMAGES = 32
MOST = 16


def quantize_command(argv: Sequence[str]) -> int:
    """Scores of a run whose weights and activations have fewer bits, simulated.

    python -m normjax.quantize --workdir=runs/a [--bits=8,6,4] [--split=test] [--best]

    Of the model as it is and, where norms fold, of the folded one: in floating point
    and with weights and inputs of all linear layers in as many bits (RepQ-ViT's
    quantizers, calibrated on 32 images of --calibrate, the training split). LayerNorms
    are rewritten so that one scale fits all their channels, and left as they are beside
    it. Attention's products, biases and norms stay in floating point.
    """
    given = parse_flags(argv, _define, quantize_command.__doc__, overrides=True)
    values, workdir = given.flags, given.workdir()
    bits = [_number(text) for text in values.bits]
    if not bits:
        raise UserError("--bits names none, such as --bits=8,6,4")
    which = {"split": values.split, "calibrate": values.calibrate, "best": values.best}
    _quantize(workdir, bits, given.overrides, **which)
    return 0


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 < int(text) <= MOST:
        raise UserError(f"--bits={text} must lie in 2..{MOST}")
    return int(text)


def _define(values: flags.FlagValues) -> None:
    define_workdir(values)
    flags.DEFINE_list("bits", ["8", "6", "4"], "of weights and activations", values)
    flags.DEFINE_string("split", None, "split; default: the config's", values)
    flags.DEFINE_string("calibrate", None, "split; default: that of training", values)
    flags.DEFINE_bool("best", False, "best checkpoint, not the newest", values)


def _quantize(
    workdir: Path,
    bits: Sequence[int],
    overrides: Any,
    *,
    split: str | None,
    calibrate: str | None,
    best: bool,
) -> None:
    import jax

    from normjax.evaluation.run import config_to_read, folded_variants, restored
    from normjax.quantize.simulate import Calibration
    from normjax.records import report
    from normjax.records.datasets import check_classes
    from normjax.train.experiment import build_experiment
    from normjax.train.programs import jit_eval_step

    config = config_to_read(workdir, overrides)
    if config.task != "image_classification":
        raise UserError(f"workdir {workdir} is a run of {config.task}, not of images")
    split = str(split or config.data.eval_split)
    calibrate = str(calibrate or config.data.train_split)
    with config.unlocked():
        config.data.update(train_split="", eval_split=split, test_split="")
    experiment = build_experiment(config)
    check_classes(experiment.task, workdir)
    experiment.task.source(calibrate)
    state = restored(experiment, workdir, best=best)
    batch = _first_images(map(jax.device_get, experiment.eval_batches(calibrate)))
    x, known = experiment.task.objective.inputs(batch)
    rows = {}

    def score(title: str, variables: Any, step: Any) -> None:
        rows[title] = experiment.evaluate(step, variables, split)

    variants = folded_variants(experiment, state.eval_variables())
    if variants["folded"][0] is variants["unfolded"][0]:  # nothing folds
        del variants["folded"]
    for name, (model, variables) in variants.items():
        score(f"{name}, floating point", variables, jit_eval_step(experiment, model))
        calibration = Calibration(model, variables, x, train=False, **known)
        steps = {}  # one program for all bits
        for count in bits:
            for how in ("", ", norms rescaled"):
                made = calibration.at(count, rescale=bool(how))
                if how and not made.rescaled:
                    continue
                if how not in steps:
                    steps[how] = jit_eval_step(experiment, made.model)
                score(f"{name}, {count} bits{how}", made.variables, steps[how])
    title = f"{workdir}, step {int(state.step)}, split {split}; "
    title += f"calibrated on {len(x)} images of {calibrate}"
    report.score_table(title, "model", experiment.task.columns, rows)


def _first_images(batches: Iterable[Any]) -> dict[str, Any]:
    """One batch of the first `IMAGES` images, or of all there are."""
    import numpy as np

    taken: dict[str, list[Any]] = {}
    for batch in batches:
        for name, rows in batch.items():
            taken.setdefault(name, []).append(rows[batch["mask"]])
        if sum(map(len, taken["mask"])) >= IMAGES:
            break
    return {name: np.concatenate(rows)[:IMAGES] for name, rows in taken.items()}


if __name__ == "__main__":
    sys.exit(run(quantize_command, sys.argv))
