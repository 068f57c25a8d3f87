"""A trained model as one file that JAX alone can run.

python -m normjax.export --workdir=DIR [--fold] [--platforms=cpu,cuda,tpu] FILE

The newest checkpoint's model with its weights, batch size left open, as a serialized
jax.export artifact. It is read back and compared with the live model before the command
reports success. Images go in as uint8 [B, H, W, C], text as tokens. FILE.json gets the
names of the classes, in the order of the logits.
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
from normjax.core.errors import UserError, one_of
from normjax.export.artifact import (
    export_model,
    input_row,
    largest_difference,
    load,
    predictor,
)
from normjax.train import report
from normjax.train.cli import EXIT_FAILED, run
from normjax.train.config import kept_config, parse_flags

PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED_SIZES = (1, 3)  # batch sizes
TOLERANCE = 1e-4  # of float32 logits; bfloat16 has two digits
TOLERANCE_BFLOAT16 = 1e-1


def export_command(argv: Sequence[str]) -> int:
    """See the head of the file."""
    files = [arg for arg in argv[1:] if not arg.startswith("-")]
    values = parse_flags([a for a in argv if a not in files], _define)
    if len(files) != 1 or not values.workdir:
        raise UserError("python -m normjax.export --workdir=DIR [--fold] FILE")
    for name in values.platforms:
        if name not in PLATFORMS:
            raise UserError(one_of("platform", name, PLATFORMS))
    from normjax.train.datasets import check_classes
    from normjax.train.experiment import build_experiment, computation_dtype
    from normjax.train.mesh import on_these_devices
    from normjax.train.start import saved_variables

    config = on_these_devices(kept_config(Path(values.workdir)))
    experiment = build_experiment(config)
    check_classes(experiment.task, Path(values.workdir))
    like = experiment.abstract_state()
    model, variables = experiment.model, saved_variables(Path(values.workdir), like)
    if values.fold:
        with report.warnings_in_lines():
            model, variables = fusion.fold(model, variables)
    objective = experiment.task.objective
    row = input_row(objective, experiment.task.row())
    predict = predictor(model, jax.device_put(variables), objective)
    artifact = export_model(predict, row, values.platforms or None)
    _write(Path(files[0]), artifact)
    names = experiment.task.class_names()
    if names:
        beside = Path(f"{files[0]}.json")
        _write(beside, json.dumps({"classes": names}, indent=2).encode() + b"\n")
    difference = float("nan")
    local = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if not values.platforms or local in values.platforms:
        again = load(Path(files[0]).read_bytes())
        batches = _batches(experiment, row)
        difference = largest_difference(predict, again, batches)
        exact = computation_dtype(config) == np.float32
        bound = TOLERANCE if exact else TOLERANCE_BFLOAT16
        if not difference <= bound:
            message = f"read back, the logits of {files[0]} differ by {difference:.2e}"
            print(f"error: {message}", file=sys.stderr)
            return EXIT_FAILED
    inputs = ", ".join(f"{k} {s.dtype}{['B', *s.shape]}" for k, s in row.items())
    rows = [
        ("bytes", len(artifact)),
        ("inputs", inputs),
        ("platforms", ", ".join(values.platforms) or local),
        *([("classes", f"{len(names)}, named in {files[0]}.json")] if names else []),
        ("largest difference to the live model", f"{difference:.2e}"),
    ]
    report.table(files[0], ("", ""), rows)
    return 0


def _define(values: flags.FlagValues) -> None:
    known: Any = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "folder of the run", **known)
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


if __name__ == "__main__":
    sys.exit(run(export_command, sys.argv))
