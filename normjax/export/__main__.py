"""A trained model as one file that JAX alone can run.

python -m normjax.export --workdir=DIR [--fold] [--platforms=cpu,cuda,tpu] FILE

The newest checkpoint's model with its weights, batch size left open, as a serialized
jax.export artifact. It is read back and compared with the live model before the command
reports success: on noise, or on the data where --config.data.path=... says that they
are. Images go in as uint8 [B, H, W, C], text as tokens. FILE.json gets the names of the
classes, in the order of the logits, and what becomes of images before
(`python -m normjax.predict --artifact=FILE` reads it).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from normjax import fusion
from normjax.cli.flags import define_workdir, parse_flags
from normjax.cli.main import EXIT_FAILED, run
from normjax.core.errors import UserError, one_of
from normjax.evaluation.predict import FIELDS
from normjax.export.artifact import (
    export_model,
    input_row,
    largest_difference,
    load,
    predictor,
)
from normjax.records import report
from normjax.train.config import kept_config

READS = ("data",)  # of the run's config
PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED_SIZES = (1, 3)  # batch sizes
TOLERANCE = 1e-4  # of float32 logits; bfloat16 has two digits
TOLERANCE_BFLOAT16 = 1e-1


def export_command(argv: Sequence[str]) -> int:
    """See the head of the file."""
    given = parse_flags(argv, _define, __doc__, files="FILE", overrides=True)
    values, workdir, file = given.flags, given.workdir(), given.files[0]
    for name in values.platforms:
        if name not in PLATFORMS:
            raise UserError(one_of("platform", name, PLATFORMS))
    from normjax.devices.mesh import on_these_devices
    from normjax.records.datasets import check_classes, kept_description
    from normjax.train.experiment import build_experiment, computation_dtype
    from normjax.train.start import saved_variables

    config = on_these_devices(kept_config(workdir, given.overrides, READS))
    described = None if given.overrides else kept_description(config.task, workdir)
    experiment = build_experiment(config, described=described)
    check_classes(experiment.task, workdir)
    like = experiment.abstract_state()
    model, variables = experiment.model, saved_variables(workdir, like)
    if values.fold:
        with report.warnings_in_lines():
            model, variables = fusion.fold(model, variables)
    objective = experiment.task.objective
    row = input_row(objective, experiment.task.row())
    predict = predictor(model, jax.device_put(variables), objective)
    artifact = export_model(predict, row, values.platforms or None)
    _write(Path(file), artifact)
    names = experiment.task.class_names()
    known: dict[str, Any] = {"classes": names} if names else {}
    if config.task == "image_classification":
        spec = {k: config.data.augment[k] for k in FIELDS if k in config.data.augment}
        known["images"] = {"shape": row["image"].shape, **spec}
    if known:
        beside = Path(f"{file}.json")
        _write(beside, json.dumps(known, indent=2).encode() + b"\n")
    difference = float("nan")
    local = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if not values.platforms or local in values.platforms:
        again = load(Path(file).read_bytes())
        batches = _noise(row, described) if described else _batches(experiment, row)
        difference = largest_difference(predict, again, batches)
        exact = computation_dtype(config) == np.float32
        bound = TOLERANCE if exact else TOLERANCE_BFLOAT16
        if not difference <= bound:
            message = f"read back, the logits of {file} differ by {difference:.2e}"
            print(f"error: {message}", file=sys.stderr)
            return EXIT_FAILED
    inputs = ", ".join(f"{k} {s.dtype}{['B', *s.shape]}" for k, s in row.items())
    rows = [
        ("bytes", len(artifact)),
        ("inputs", inputs),
        ("platforms", ", ".join(values.platforms) or local),
        *([("classes", f"{len(names)}, named in {file}.json")] if names else []),
        ("largest difference to the live model", f"{difference:.2e}"),
    ]
    report.table(file, ("", ""), rows)
    return 0


def _define(values: flags.FlagValues) -> None:
    known: Any = {"flag_values": values}
    define_workdir(values)
    flags.DEFINE_bool("fold", False, "norms merged into their neighbours", **known)
    flags.DEFINE_list("platforms", [], "cpu, cuda, tpu; default: this one", **known)


def _write(path: Path, artifact: bytes) -> None:
    try:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(artifact)
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _batches(experiment: Any, row: Any) -> list[dict[str, np.ndarray]]:
    """The first rows of the evaluation split, as many as are checked."""
    split = experiment.config.data.eval_split
    batch = next(experiment.task.eval_batches(split, batch_size=max(CHECKED_SIZES)))
    return [{name: batch[name][:size] for name in row} for size in CHECKED_SIZES]


def _noise(row: Any, described: Any) -> list[dict[str, np.ndarray]]:
    """As many rows of anything: pixels, tokens, and masks that hide nothing."""
    rng = np.random.default_rng(0)

    def made_up(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if dtype == np.bool_:
            return np.ones(shape, bool)
        pixels = dtype == np.uint8  # else tokens, or their positions
        high = 256 if pixels else min(shape[1], described.vocab_size)
        return rng.integers(0, high, shape).astype(dtype)

    return [
        {name: made_up((size, *s.shape), s.dtype) for name, s in row.items()}
        for size in CHECKED_SIZES
    ]


if __name__ == "__main__":
    sys.exit(run(export_command, sys.argv))
