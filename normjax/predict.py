"""The likeliest classes of images: `python -m normjax.predict --help`."""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from normjax.cli.flags import (
    CommandLine,
    define_published,
    define_workdir,
    parse_flags,
)
from normjax.cli.main import EXIT_FAILED, run
from normjax.core.errors import UserError, printable
from normjax.core.paths import local_path


def predict_command(argv: Sequence[str]) -> int:
    """The likeliest classes of images.

    python -m normjax.predict --workdir=runs/a [--best] IMAGE...
    python -m normjax.predict --model=swin_tiny --weights=FILE [--classes=FILE] IMAGE...
    python -m normjax.predict --artifact=model.stablehlo IMAGE...

    IMAGE is a file, or a folder whose images are taken. A run and an exported model
    know the names of their classes; those of published weights stand in --classes, a
    line each in the order of the logits. Images are resized and cropped as in
    evaluation. One that cannot be read gets a line on stderr, the others their classes;
    the exit code is then 1.
    """
    given = parse_flags(
        argv, _define, predict_command.__doc__, files="IMAGE...", overrides=True
    )
    values = given.flags
    if values.top < 1:
        raise UserError(f"--top={values.top} must be at least 1")
    places = [local_path("image", file) for file in given.files]
    from normjax.evaluation.predict import files_of, predict, with_names
    from normjax.records import report

    files, classifier = files_of(places), _classifier(given)
    if values.classes:
        classifier = with_names(classifier, values.classes)
    rows, unread = [], 0
    for file, found in predict(classifier, files, values.top):
        name = printable(str(file))
        if isinstance(found, UserError):
            unread += 1
            print("error:", found, file=sys.stderr)
            rows.append((name, "not read", ""))
            continue
        for guess in found:
            rows.append((name, guess.name, f"{100 * guess.probability:.2f} %"))
            name = ""
    report.table("", ("image", "class", "probability"), rows)
    return EXIT_FAILED if unread else 0


def _define(values: flags.FlagValues) -> None:
    define_workdir(values)
    flags.DEFINE_bool("best", False, "best checkpoint, not the newest", values)
    define_published(values)
    flags.DEFINE_string("artifact", None, "file of normjax.export", values)
    flags.DEFINE_string("classes", "", "file of class names in order", values)
    flags.DEFINE_integer("top", 5, "classes of each image", flag_values=values)


_OF = {
    "workdir": ("best",),
    "model": ("weights", "averaged", "image_size"),
    "artifact": (),
}
"""What says which model it is, and the flags that go with each."""


def _classifier(given: CommandLine) -> Any:
    """The model of the command line.

    Raises:
      UserError: none or several are named, or it cannot be read.
    """
    values = given.flags
    named = [name for name in _OF if values[name].value]
    if len(named) != 1:
        raise UserError("give one of --workdir, --model and --artifact: see --help")
    for kind, names in _OF.items():
        if kind not in named:
            given.refuse(names, f"without --{kind}")
    from normjax.evaluation.predict import Classifier, beside, of_run, of_weights

    if values.workdir:
        return of_run(given.workdir(), best=values.best, overrides=given.overrides)
    if values.model:
        if not values.weights:
            raise UserError("--model needs --weights: see --help")
        weights = local_path("weights", values.weights)
        how = {"side": values.image_size, "averaged": values.averaged}
        return of_weights(values.model, weights, **how, overrides=given.overrides)
    if given.overrides:
        raise UserError(f"--config.{given.overrides[0].field} has no effect here")
    from normjax.export.artifact import load

    file = local_path("artifact", values.artifact)
    known = beside(file)
    logits = load(file.read_bytes())
    images = dict(known["images"])
    shape = tuple(images.pop("shape"))
    names = tuple(known.get("classes", ()))
    return Classifier(lambda x: logits({"image": x}), shape, images, names)


if __name__ == "__main__":
    sys.exit(run(predict_command, sys.argv))
