"""Published PyTorch weights in, and back.

python -m normjax.convert --model=slab_swin_tiny checkpoint.pth runs/a
python -m normjax.convert --to_torch runs/a weights.safetensors
python -m normjax.convert --linearize runs/lm runs/liger

The first writes a run that `eval.py --workdir=runs/a` opens: the config of the model's
recipe, or of --config=FILE:ARGUMENTS, whose fields --config.field=value sets.
CHECKPOINT is a file, or the folder of a model in several. --averaged takes the average
of the weights that lies beside them. The second writes a state dict in the layout of
the family's release, or in that of --layout=NAME. The third writes a run whose softmax
layers are a gated recurrence and a window (`liger`), to be fine-tuned;
--config.model.mixer.recurrence=gsa and other fields are set in its config.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from normjax import convert
from normjax.cli.flags import define_config, parse_flags
from normjax.cli.main import run
from normjax.config.overrides import Override, override
from normjax.core.errors import UserError
from normjax.core.paths import local_path, workdir_path
from normjax.core.scanned import scanned_of
from normjax.evaluation.published import image_size, open_published, recipe_of

USAGE = (
    "--model=NAME CHECKPOINT WORKDIR, --to_torch WORKDIR FILE.safetensors, or "
    "--linearize WORKDIR NEW_WORKDIR"
)

LINEARIZED = "with --linearize"


def convert_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        define_config(values)
        flags.DEFINE_string("model", None, "preset", flag_values=values)
        flags.DEFINE_bool("averaged", False, "the averaged weights", flag_values=values)
        flags.DEFINE_bool("to_torch", False, "back to PyTorch", flag_values=values)
        what = "softmax layers of a run as liger"
        flags.DEFINE_bool("linearize", False, what, flag_values=values)
        flags.DEFINE_string("layout", None, "of the file to write", flag_values=values)

    given = parse_flags(
        argv, define, __doc__, files="CHECKPOINT WORKDIR", overrides=True
    )
    values, (first, second) = given.flags, given.files
    if values.linearize:
        given.refuse(["model", "config", "averaged", "to_torch", "layout"], LINEARIZED)
        _linearize(workdir_path(first), workdir_path(second), given.overrides)
        return 0
    if values.to_torch:
        given.refuse(["model", "config", "averaged"], "with --to_torch")
        if given.overrides:
            raise UserError(f"--config.{given.overrides[0].field} has no effect here")
        _export(workdir_path(first), local_path("path", second), values.layout)
        return 0
    source, target = local_path("path", first), workdir_path(second)
    given.refuse(["layout"], "without --to_torch")
    if values.model and not values.config:
        values.config = recipe_of(values.model)
    if not values.config:
        raise UserError(f"python -m normjax.convert {USAGE}")
    config = given.config()
    if values.model and config.model.name != values.model:
        name = config.model.name
        raise UserError(f"--model={values.model}, but the model of --config is {name}")
    _import(config, source, target, averaged=values.averaged)
    return 0


def _import(config: Any, checkpoint: Path, workdir: Path, *, averaged: bool) -> None:
    from normjax.records import report
    from normjax.train.start import start_from

    found = open_published(config, checkpoint, averaged=averaged)
    model, weights, converted = found.model, found.weights, found.converted
    shape = found.shape
    if shape:
        _check_classes(config.data, found.sizes["num_classes"])
    start_from(config, converted.variables, workdir, _description(model, shape))
    title = f"{checkpoint} ({converted.layout}) -> {workdir}"
    rows = [("used", weights.taken, converted.used, "averaged" * weights.averaged)]
    for what, names in (
        ("dropped", converted.dropped),
        ("filled", converted.filled),
        ("left out", weights.left),
    ):
        groups = convert.grouped(names)
        rows += [(what, name, count, why) for name, count, why in groups]
    for field, value, before in found.changes:
        rows.append(("set", f"{field}={value}", 1, f"by the file, instead of {before}"))
    report.table(title, ("", "arrays", "number", "why"), rows)


def _check_classes(data: Any, count: int) -> None:
    """Raises UserError where the data, if at hand, have another number of classes."""
    from normjax.data import open_images
    from normjax.data.folder import scan

    try:
        if data.name == "image_folder":  # which opening would read to its end
            classes = len(scan(data.path).class_names)
        else:
            where = data.data_dir or None
            images = open_images(data.name, data.train_split, data_dir=where)
            classes = images.num_classes
    except UserError:
        return  # the data are elsewhere, and are compared there
    if classes != count:
        raise UserError(
            f"the file has {count} classes, the data {data.path or data.name} "
            f"{classes}: a run of converted weights has the classes of the file"
        )


def _description(model: Any, shape: Any) -> Any:
    """What there is to know of data for the model; a run keeps it."""
    from normjax.tasks.described import Images, Text

    if not shape:
        return Text(model.vocab_size)
    return Images("", model.num_classes, shape[-1], shape)


def _export(workdir: Path, file: Path, layout: str | None) -> None:
    from normjax.core.console import console
    from normjax.train.config import kept_config
    from normjax.train.experiment import build_model
    from normjax.train.start import saved_variables

    config = kept_config(workdir)
    variables = saved_variables(workdir)
    model = build_model(config, **convert.size_of(variables))
    size = image_size(config) if convert.reads_images(model) else ()
    state = convert.to_torch(model, variables, size, layout)
    convert.write(file, state)
    console.print(f"{file}: {len(state)} arrays")


def _linearize(source: Path, target: Path, overrides: Sequence[Override]) -> None:
    from normjax.convert.linearize import linearized_model
    from normjax.convert.names import abstract_variables
    from normjax.records import report
    from normjax.records.arrays import check_same_arrays
    from normjax.train.config import kept_config
    from normjax.train.experiment import build_model
    from normjax.train.start import saved_variables, start_from

    before = kept_config(source)
    after = linearized_model(before.model.to_dict())
    config = kept_config(source).unlock()
    config.model = ConfigDict(after)
    config.init.path = ""
    config = override(config, overrides).lock()
    variables = saved_variables(source)
    model = build_model(config, **convert.size_of(variables))
    shapes = abstract_variables(model, ())
    check_same_arrays(variables, shapes, f"{source} and the model of {target}")
    scanned = scanned_of(model)
    start_from(config, variables, target, _description(model, ()), scanned)
    rows = [("mixer", str(before.model.get("mixer", "softmax")), str(after["mixer"]))]
    report.table(f"{source} -> {target}", ("", "before", "after"), rows)


if __name__ == "__main__":
    sys.exit(run(convert_command, sys.argv))
