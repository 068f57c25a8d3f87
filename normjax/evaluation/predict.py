"""The likeliest classes of single images."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from normjax.config.overrides import Override
from normjax.core.errors import UserError, printable
from normjax.data import augment
from normjax.data.class_order import read_classes
from normjax.data.decode import OneRange, Undecodable, decode_with_range
from normjax.data.folder import counted
from normjax.data.listing import list_files
from normjax.data.prepared import say
from normjax.devices.mesh import on_these_devices
from normjax.evaluation.published import published_model
from normjax.evaluation.run import READS, restored
from normjax.records.datasets import kept_description
from normjax.tasks.classification import Classification
from normjax.train.config import kept_config
from normjax.train.experiment import Experiment, build_experiment

BATCH = 16

FIELDS = ("image_size", "eval_resize", "interpolation")
"""Of `augment.Fields`: what becomes of images in evaluation."""


class Classifier(NamedTuple):
    """A model with what it needs to read image files.

    Attributes:
      logits: from uint8 [B, H, W, C] to [B, K].  shape: (H, W, C).
      spec: values of `augment.Fields`.  names: of the classes, () if they are unknown.
    """

    logits: Callable[[np.ndarray], Any]
    shape: tuple[int, int, int]
    spec: dict[str, Any]
    names: tuple[str, ...]


class Guess(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


def of_run(
    workdir: Path, *, best: bool = False, overrides: Sequence[Override] = ()
) -> Classifier:
    """That of a run, which needs no data any more.

    Args:
      best: the checkpoint with the best scores instead of the newest.

    Raises:
      UserError: no run in `workdir`, or one that does not classify images.
    """
    experiment, variables, spec = opened_run(workdir, best=best, overrides=overrides)
    return Classifier(
        logits=_applied(experiment.model, variables, experiment.task.objective),
        shape=tuple(experiment.task.row()["image"].shape),
        spec=spec,
        names=experiment.task.class_names(),
    )


def opened_run(
    workdir: Path, *, best: bool = False, overrides: Sequence[Override] = ()
) -> tuple[Experiment, Any, dict[str, Any]]:
    """A run without its data, its variables, and what becomes of its images.

    Raises:
      UserError: as `of_run`.
    """
    config = on_these_devices(kept_config(workdir, overrides, READS))
    if config.task != "image_classification":
        raise UserError(f"workdir {workdir} is a run of {config.task}, not of images")
    described = kept_description(config.task, workdir)
    experiment = build_experiment(config, described=described)
    variables = restored(experiment, workdir, best=best).eval_variables()
    spec = {field: config.data.augment.get(field) for field in FIELDS}
    return experiment, variables, {k: v for k, v in spec.items() if v is not None}


def of_weights(preset: str, path: Path, **how: Any) -> Classifier:
    """That of published weights; `how` is as of `published_model`."""
    found = published_model(preset, path, **how)
    data, count = found.config.data, found.sizes["num_classes"]
    objective = Classification(count, tuple(data.mean), tuple(data.std))
    variables = jax.device_put(found.converted.variables)
    return Classifier(
        logits=_applied(found.model, variables, objective),
        shape=(found.shape[0], found.shape[1], found.shape[2]),
        spec={field: data.augment[field] for field in FIELDS},
        names=(),
    )


def _applied(model: Any, variables: Any, objective: Any) -> Callable[..., Any]:
    @jax.jit
    def logits(variables, images):
        x, known = objective.inputs({"image": images})
        return model.apply(variables, x, train=False, **known)

    return lambda images: logits(variables, images)


def predict(
    classifier: Classifier, files: Sequence[Path], top: int = 5
) -> Iterator[tuple[Path, list[Guess] | UserError]]:
    """Each file with its likeliest classes, best first, or why there are none.

    A file that cannot be read, or whose size the model does not take, keeps no other
    from its answer.
    """
    read = reader_of(classifier.shape, classifier.spec)
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        images = [read(file) for file in part]
        rows = np.zeros((BATCH, *classifier.shape), np.uint8)
        for i, image in enumerate(images):
            if not isinstance(image, UserError):
                rows[i] = image
        logits = np.asarray(classifier.logits(rows), np.float64)
        for i, (file, image) in enumerate(zip(part, images, strict=True)):
            if isinstance(image, UserError):
                yield file, image
                continue
            shifted = np.exp(logits[i] - logits[i].max())
            probabilities = shifted / shifted.sum()
            order = np.argsort(-probabilities, kind="stable")[:top]
            guesses = [(_name(classifier, k), float(probabilities[k])) for k in order]
            yield file, [Guess(*guess) for guess in guesses]


def reader_of(
    shape: tuple[int, ...], spec: dict[str, Any]
) -> Callable[[Path], np.ndarray | UserError]:
    """A function from a file to its image, uint8 [H, W, C], or why there is none.

    Args:
      shape, spec: as of `Classifier`.
    """
    transform, seen = augment.build(spec, train=False), OneRange()

    def read(file: Path) -> np.ndarray | UserError:
        try:
            return _read(file, shape, transform, seen)
        except UserError as error:
            return error

    return read


def _name(classifier: Classifier, label: int) -> str:
    names = classifier.names
    return printable(names[label]) if names else f"class {label}"


def _read(
    file: Path, shape: tuple[int, ...], transform: Any, seen: OneRange
) -> np.ndarray:
    try:
        image, fills = decode_with_range(file.read_bytes(), shape[-1])
        seen.check(fills, str(file))
    except (OSError, Undecodable) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {str(file)!r}: {reason}") from None
    if transform is not None:
        image = transform([image], np.empty((1, 0)))[0]
    if image.shape != shape:
        here, there = (" x ".join(map(str, s[:2])) for s in (image.shape, shape))
        raise UserError(
            f"{str(file)!r} has {here} pixels, the model reads {there}: it was trained "
            "without config.data.augment.image_size, on images as they are"
        )
    return image


def with_names(classifier: Classifier, classes: str) -> Classifier:
    """With the names of a file, see `data.class_order.read_classes`.

    Raises:
      UserError: one that names another number of classes.
    """
    names = tuple(" ".join(dict.fromkeys(a[:2])) for a in read_classes(classes))
    row = np.zeros((BATCH, *classifier.shape), np.uint8)
    count = jax.eval_shape(classifier.logits, row).shape[-1]
    if len(names) != count:
        raise UserError(
            f"classes={classes!r} names {len(names)} classes, the model has {count}"
        )
    return classifier._replace(names=names)


def files_of(places: Sequence[Path]) -> list[Path]:
    """The images at `places`: files, and what lies in folders.

    Raises:
      UserError: no such place, a folder without images.
    """
    files = []
    for place in places:
        if not place.exists():
            raise UserError(f"no such image {str(place)!r}")
        if not place.is_dir():
            files.append(place)
            continue
        listing = list_files(place)
        if not listing.images:
            raise UserError(f"no image in {str(place)!r}")
        if others := counted(listing.left_out):
            say(f"left out in {str(place)!r}: {others}")
        files += [place / name for name in sorted(listing.images)]
    return files


def beside(artifact: Path) -> dict[str, Any]:
    """What an exported model keeps beside it: {"classes", "images"}.

    Raises:
      UserError: it is not there, or of a model that reads no images.
    """
    path = Path(f"{artifact}.json")
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error})") from None
    if "images" not in known:
        raise UserError(
            f"{str(path)!r} says nothing of images: export the model again by "
            "python -m normjax.export"
        )
    return known
