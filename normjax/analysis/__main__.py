"""Pictures of what answers look at: `python -m normjax.analysis --help`."""

import math
import sys
from collections.abc import Sequence

from absl import flags

from normjax.cli.flags import HELP, HelpWanted, define_workdir, parse_flags
from normjax.cli.main import EXIT_FAILED, run
from normjax.core.errors import UserError, one_of, printable
from normjax.core.files import reason
from normjax.core.paths import local_path


def saliency_command(argv: Sequence[str]) -> int:
    """Which pixels and places an answer comes from.

    python -m normjax.analysis saliency --workdir=runs/a [--best] IMAGE...

    IMAGE is a file, or a folder whose images are taken. Of each a PNG shows SmoothGrad,
    Grad-CAM, Grad-CAM++ and Smooth Grad-CAM++ over the image as the model sees it, in
    --out. Maps are those of the norm before the last mixer, or of the last block, or of
    --layer. An image that cannot be read gets a line on stderr; the exit code is then
    1.
    """
    given = parse_flags(
        argv, _define, saliency_command.__doc__, files="IMAGE...", overrides=True
    )
    values, workdir = given.flags, given.workdir()
    if not math.isfinite(values.spread):
        raise UserError(f"--spread={values.spread} must be finite")
    places = [local_path("image", file) for file in given.files]
    from normjax.core.console import console
    from normjax.evaluation.predict import files_of
    from normjax.evaluation.saliency import Explainer, draw

    files = files_of(places)
    explainer = Explainer(
        workdir,
        layer=values.layer,
        samples=values.samples,
        spread=values.spread,
        best=values.best,
        overrides=given.overrides,
    )
    label = _label(values["class"].value, explainer.names)
    out = local_path("out", values.out or str(workdir / "saliency"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {reason(error)}") from None
    console.print(f"maps of layer {explainer.layer}")
    unread, taken = 0, set()
    for file, found in explainer.pictures(files, label):
        if isinstance(found, UserError):
            unread += 1
            print("error:", found, file=sys.stderr)
            continue
        stem = printable(file.stem)
        name = next(n for n in _names(stem) if n not in taken)
        taken.add(name)
        draw(found, printable(file.name), out / f"{name}.png")
        console.print(
            f"{out / name}.png: {found.name}, {100 * found.probability:.2f} %"
        )
    return EXIT_FAILED if unread else 0


def _names(stem: str):
    """Files of one name in several folders get numbers."""
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def _label(name: str | None, names: Sequence[str]) -> int | None:
    """The class that --class names, or whose number it is."""
    if name is None:
        return None
    if name in names:
        return names.index(name)
    if name.isdecimal() and (not names or int(name) < len(names)):
        return int(name)
    raise UserError(one_of("--class", name, names))


def _define(values: flags.FlagValues) -> None:
    define_workdir(values)
    flags.DEFINE_bool("best", False, "best checkpoint, not the newest", values)
    what = "class to explain, by name or number; default: the likeliest"
    flags.DEFINE_string("class", None, what, values)
    flags.DEFINE_string("layer", "", "whose maps are drawn", values)
    flags.DEFINE_integer(
        "samples", 25, "noisy copies of an image", 1, flag_values=values
    )
    what = "of the noise, in ranges of the image"
    flags.DEFINE_float("spread", 0.15, what, 0.0, flag_values=values)
    flags.DEFINE_string("out", None, "folder; default: saliency in the run's", values)


COMMANDS = {"saliency": saliency_command}


def analysis_command(argv: Sequence[str]) -> int:
    """The command that the first argument names."""
    name = argv[1] if len(argv) > 1 else ""
    if name in HELP:
        raise HelpWanted("\n".join(c.__doc__ or "" for c in COMMANDS.values()))
    if name not in COMMANDS:
        raise UserError(one_of("command", name, COMMANDS))
    return COMMANDS[name]([f"{argv[0]} {name}", *argv[2:]])


if __name__ == "__main__":
    sys.exit(run(analysis_command, sys.argv))
