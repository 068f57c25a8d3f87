"""Evaluate published weights on a folder of images, without a run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from normjax import convert
from normjax.config.overrides import Override, override
from normjax.config.recipes import RECIPES, load_config
from normjax.convert.layouts import SIZES
from normjax.convert.names import abstract_variables
from normjax.convert.settings import (
    Change,
    published_settings,
    settle,
    settle_form,
)
from normjax.convert.wrappers import Found
from normjax.core.errors import UserError, one_of
from normjax.data import ImageSet
from normjax.data.class_order import WNID
from normjax.data.digit_lines import line_size
from normjax.data.folder import counted
from normjax.evaluation.run import scores_of, show_scores
from normjax.families import FAMILIES, Preprocessing, family_of
from normjax.records import report
from normjax.train.experiment import Experiment, build_experiment, build_model
from normjax.transfer.match import match
from normjax.transfer.source import of_file, schedule_end
from normjax.transfer.wanted import Wanted

LIKELY = ("validation", "test", "train")
"""Splits to evaluate, the first that is there."""


class Published(NamedTuple):
    """Weights of a file in a model.

    Attributes:
      config: of a run with it, as the file settles it.  changes: what that changed.
      weights: the file.  converted: its variables.  sizes: arguments of the model that
        the file decides.  shape: [H, W, C] of its images; () of text.
    """

    config: Any
    changes: list[Change]
    weights: Found
    model: Any
    converted: convert.Converted
    sizes: dict[str, Any]
    shape: tuple[int, ...]


def recipe_of(preset: str) -> str:
    """The config of a preset.

    Raises:
      UserError: no preset of this name, or none with a recipe.
    """
    family = family_of(preset)
    if family is None or not family.trains(preset):
        known = [n for f in FAMILIES.values() for n in f.presets if f.trains(n)]
        raise UserError(one_of("model", preset, known))
    return str(RECIPES / family.config_of(preset))


def open_published(
    config: Any, path: Path, *, averaged: bool = False, resample: bool = False
) -> Published:
    """The weights of a file in the model of `config`, which is settled in place.

    Args:
      averaged: the average of the weights that lies beside them.
      resample: tables of positions to the size of the images, see `transfer.resample`.

    Raises:
      UserError: a file that cannot be read, or does not hold this model.
    """
    weights = convert.load(path, averaged=averaged)
    arguments = convert.arguments_of(weights.state, config.model.norm.to_dict())
    sizes = {k: v for k, v in arguments.items() if k in SIZES}
    tied = {"tie_word_embeddings": arguments["tied"]} if "tied" in arguments else {}
    with config.unlocked():
        config.model.norm = ConfigDict(arguments["norm"])
        form = settle_form(config, weights.state)
        model = build_model(config, **sizes)
        changes = settle(config, model, {**tied, **published_settings(path)})
    model, shape = build_model(config, **sizes), ()
    if convert.reads_images(model):
        shape = (*image_size(config), convert.channels_of(weights.state))
    if resample:
        converted = _resampled(config, path, averaged, model, sizes, shape)
    else:
        converted = convert.from_torch(model, weights.state, shape)
    return Published(config, form + changes, weights, model, converted, sizes, shape)


def _resampled(
    config: Any,
    path: Path,
    averaged: bool,
    model: Any,
    sizes: Any,
    shape: tuple[int, ...],
) -> convert.Converted:
    """Every array of the model from the file, tables of positions for another size."""
    build = partial(build_model, **sizes)
    source = of_file(path, config, build, shape, averaged=averaged)
    flat: Any = flatten_dict(abstract_variables(model, shape), sep="/")
    shapes = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    found = match(source, Wanted(shapes, schedule_end(model), chooses=False))
    if found.new:
        raise UserError(
            f"{path} has nothing for {found.new[0]} ({len(found.new)} such)"
        )
    filled = {name: how for name, how in found.how.items() if how != "same"}
    variables = unflatten_dict(found.arrays, sep="/")
    return convert.Converted(variables, "", len(found.arrays), found.left, filled)


def image_size(config: Any) -> tuple[int, int]:
    """Height and width of the images of a run.

    Raises:
      UserError: it says none.
    """
    if config.task == "line_recognition":
        return line_size(config.data.length)
    side = config.data.augment.image_size
    if not side:
        raise UserError("config.data.augment.image_size is 0: the model needs a size")
    return side, side


def published_model(
    preset: str,
    path: Path,
    *,
    side: int = 0,
    averaged: bool = False,
    overrides: Sequence[Override] = (),
) -> Published:
    """The weights of a file in a preset, which reads images as its family does.

    Args:
      side: of the images; 0: as published.  averaged: as of `open_published`.
      overrides: of the preset's config.

    Raises:
      UserError: as of `recipe_of` and `open_published`; a preset that reads text.
    """
    config: Any = load_config(recipe_of(preset))
    family = family_of(preset)
    found = family.preprocessing_of(preset) if family else None
    if found is None:
        raise UserError(f"model {preset!r} reads no images")
    with config.unlocked():
        preprocess(config.data, found, side)
        config.data.name = "image_folder"
        config.batch_size, config.microbatches = 128, 1
    config = override(config, overrides)
    resample = config.data.augment.image_size != found.image_size
    return open_published(config, path, averaged=averaged, resample=resample)


def preprocess(data: Any, given: Preprocessing, side: int = 0) -> None:
    """Set in the section `data` of a config what becomes of images.

    Args:
      side: of the square instead of the published one.
    """
    side = side or given.image_size
    data.mean, data.std = given.mean, given.std
    data.augment.image_size, data.augment.eval_resize = side, given.resized(side)
    data.augment.interpolation = given.interpolation


def evaluate_published(
    preset: str,
    path: Path,
    folder: Path,
    *,
    split: str = "",
    classes: str = "",
    side: int = 0,
    averaged: bool = False,
    fold: bool = False,
    overrides: Sequence[Override] = (),
) -> dict[str, dict[str, float]]:
    """Print and return the scores of published weights on a folder of images.

    Args:
      preset, path, side, averaged, overrides: of `published_model`.
      folder: an image folder, or another set of people's own by `config.data.name`,
        whose images are read in place.
      split: "": the first there is of `LIKELY`.
      classes: order of the classes, see `data.class_order`; "": as their names are
        sorted, which is ImageNet's order of wnids.
      fold: evaluate the folded model as well.

    Raises:
      UserError: as of `published_model`; a folder that cannot be read, or whose classes
        are not those of the model.
    """
    how = {"side": side, "averaged": averaged, "overrides": overrides}
    published = published_model(preset, path, **how)
    config = published.config
    if published.shape[-1] != 3:
        raise UserError(
            f"{path} reads images of {published.shape[-1]} channels, not RGB: make a "
            "run of it by python -m normjax.convert, and evaluate that"
        )
    own = {"path": str(folder), "in_place": True, "held_out": 0.0}
    own["classes"] = classes or config.data.classes
    images = ImageSet(config.data.name, **own, label_field=config.data.label_field)
    split = split or next((s for s in LIKELY if s in images.splits), "test")
    with config.unlocked():
        config.data.update(
            **own, data_dir="", train_split="", eval_split=split, test_split=""
        )
    source = images.split(split)
    note = _check_classes(source, published.sizes["num_classes"], own["classes"])
    experiment = build_experiment(config)
    variables = jax.device_put(published.converted.variables)
    scores, variants, rates = scores_of(experiment, variables, split, fold=fold)
    title = f"{preset}, {path}, {folder}, split {split}"
    show_scores(experiment, title, scores, variants, split)
    report.table("", ("", ""), _rows(experiment, published, source, note, rates))
    return scores


def _check_classes(source: Any, count: int, classes: str) -> str:
    """Where the order of the classes is from.

    Raises:
      UserError: another number of classes than the model has, or an order that nobody
        can know.
    """
    names = source.class_names
    hint = "--classes=FILE names those of the model in their order, a line each"
    if len(names) != count:
        raise UserError(
            f"the folder has {len(names)} classes, the model {count}: {hint}"
        )
    if classes:
        return classes
    if all(map(WNID.fullmatch, names)):
        return "ImageNet's: sorted wnids"
    numbered = all(name.isdecimal() for name in names)
    if numbered and [int(name) for name in names] != sorted(map(int, names)):
        raise UserError(
            "the classes of the folder are numbers, whose order as text is another: "
            "--classes=numeric takes them for the numbers of the logits"
        )
    return "sorted names"


def _rows(
    experiment: Experiment, published: Published, source: Any, order: str, rates: Any
) -> list[tuple[str, str]]:
    """What was done to the images, and how fast."""
    data, counts = experiment.config.data, source.class_counts
    augment, changes = data.augment, published.changes
    fitted = convert.grouped(published.converted.filled)
    speed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items() if rate)
    held, every = int((counts > 0).sum()), len(counts)
    of = f"all {every:,} classes" if held == every else f"{held:,} of {every:,} classes"
    rows = [
        ("images", f"{len(source):,} of {of}"),
        ("left out", counted(source.ignored)),
        ("order of classes", order),
        (
            "preprocessing",
            f"short side to {augment.eval_resize}, {augment.interpolation}; center "
            f"{augment.image_size} x {augment.image_size}",
        ),
        ("mean, std", f"{tuple(data.mean)}, {tuple(data.std)}"),
        ("arrays", f"{published.converted.used:,}"),
        ("taken of the file", published.weights.taken),
        ("left out of it", _left(published)),
        ("made to fit", "; ".join(f"{n} {name}: {why}" for name, n, why in fitted)),
        ("set by the file", ", ".join(f"{c.field}={c.value}" for c in changes)),
        ("images a second", speed),
    ]
    return [row for row in rows if row[1]]


def _left(published: Published) -> str:
    """What else the file holds, and why it is left out."""
    left = {**published.weights.left, **published.converted.dropped}
    return "; ".join(f"{n} {name}: {why}" for name, n, why in convert.grouped(left))
