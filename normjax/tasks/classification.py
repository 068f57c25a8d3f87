"""Image classification."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import data
from normjax.core.accumulate import einsum
from normjax.core.errors import UserError, printable
from normjax.data.erase import erase
from normjax.data.folder import counted
from normjax.data.mix import mix, one_hot_smooth
from normjax.tasks.base import TASKS, Batch, Column, Inputs, Task, percent
from normjax.tasks.described import Images

CALIBRATION_BINS = 15


def normalize_pixels(image: jax.Array, mean, std) -> jax.Array:
    """uint8 [B, H, W, C] -> float32, (image / 255 - mean) / std per channel."""
    wide = (1, 1, 1, -1)
    mean, std = (jnp.asarray(v, jnp.float32).reshape(wide) for v in (mean, std))
    return (image.astype(jnp.float32) / 255 - mean) / std


def metric_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """What `summarize` needs, summed over the valid examples.

    Args:
      logits: [B, K].  labels: int [B].  mask: bool [B].

    Returns:
      float32 sums "count", "top1", "top5", "nll" and, per bin of confidence,
      "bin_count", "bin_confidence", "bin_hits" [CALIBRATION_BINS].
    """
    weight = mask.astype(jnp.float32)
    log_p = jax.nn.log_softmax(
        jnp.where(mask[:, None], logits, 0.0).astype(jnp.float32)
    )
    own = jnp.take_along_axis(log_p, labels[:, None], axis=-1)
    # Ties and NaN count against the model: a constant output is no top-5 prediction.
    rank = jnp.sum(~(log_p < own), axis=-1) - 1
    hit = (rank < 1).astype(jnp.float32) * weight
    confidence = jnp.exp(jnp.max(log_p, axis=-1))
    bins = jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1
    one_hot = jax.nn.one_hot(bins.clip(0), CALIBRATION_BINS) * weight[:, None]
    return {
        "count": jnp.sum(weight),
        "top1": jnp.sum(hit),
        "top5": jnp.sum((rank < 5).astype(jnp.float32) * weight),
        "nll": -jnp.sum(jnp.where(mask, own[:, 0], 0.0)),
        "bin_count": jnp.sum(one_hot, axis=0),
        "bin_confidence": einsum("n,nb->b", confidence, one_hot),
        "bin_hits": einsum("n,nb->b", hit, one_hot),
    }


def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
    """Metrics from their sums.

    Returns:
      "top1", "top5" (fractions), "nll" (nats an example) and "ece", the expected
      calibration error sum_b n_b / n * |accuracy_b - confidence_b| over equal bins of
      the largest probability (Guo et al., 2017).
    """
    sums = jax.device_get(dict(sums))
    count = sums["count"]
    gap = abs(sums["bin_hits"] - sums["bin_confidence"]).sum()
    means = {name: float(sums[name] / count) for name in ("top1", "top5", "nll")}
    return {**means, "ece": float(gap / count)}


class Classification(NamedTuple):
    """Cross entropy of images against their labels.

    Batches are {"image": uint8 [B, H, W, C], "label": int32 [B]}, in evaluation with
    "mask": bool [B].

    Attributes:
      num_classes: width of the logits.
      mean, std: of the pixels scaled to 0..1, one a channel or one for all.
      label_smoothing, mixup_alpha, cutmix_alpha: 0 is off.
      erase_probability: of random erasing, before images are mixed; 0 is off.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from normjax.tasks import Classification
      >>> objective = Classification(num_classes=4, mean=(0.5,), std=(0.5,))
      >>> images = jnp.zeros((2, 8, 8, 1), jnp.uint8)
      >>> batch = {"image": images, "label": jnp.array([0, 3])}
      >>> (images, _), targets = objective.examples(batch, jax.random.key(0))
      >>> print(images.min(), targets.argmax(-1))
      -1.0 [0 3]
      >>> loss, _ = objective.loss(jnp.zeros((2, 4)), targets)
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    erase_probability: float = 0.0

    def examples(self, batch: Batch, key: jax.Array) -> tuple[Inputs, jax.Array]:
        """Normalised, mixed images [B, H, W, C] and soft targets [B, K]."""
        images, known = self.inputs(batch)
        targets = one_hot_smooth(batch["label"], self.num_classes, self.label_smoothing)
        if self.erase_probability:
            key, erase_key = jax.random.split(key)
            images = erase(erase_key, images, self.erase_probability)
        alphas = {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}
        images, targets = mix(key, images, targets, **alphas)
        return (images, known), targets

    def loss(self, logits: jax.Array, targets: jax.Array):
        """Mean cross entropy; "accuracy" is that of the mixed images against the
        larger label."""
        losses = optax.softmax_cross_entropy(logits, targets)
        hit = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
        return jnp.mean(losses), {"accuracy": jnp.mean(hit.astype(jnp.float32))}

    def inputs(self, batch: Batch) -> Inputs:
        """Normalised images [B, H, W, C]."""
        return normalize_pixels(batch["image"], self.mean, self.std), {}

    def rows(self, batch: Batch) -> jax.Array:
        """bool [B]."""
        return batch["mask"]

    def answers(self, logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits [B, K] and bool [B]."""
        return logits, batch["mask"]

    def sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """See `metric_sums`."""
        return metric_sums(logits, batch["label"], batch["mask"])


@TASKS.register("image_classification")
class ImageClassification(Task):
    """Images of a data set and their classes; see `data.open_images`.

    Example:
      >>> from normjax.config.recipes import load_config
      >>> from normjax.tasks import ImageClassification
      >>> task = ImageClassification(load_config("digits"))
      >>> task.describe(), task.model_arguments(), task.row()["image"].shape
      ('digits, 1,437 images', {'num_classes': 10}, (8, 8, 1))
    """

    unit = "images"
    described_as = Images
    columns = (
        Column("top1", "top-1", percent),
        Column("top5", "top-5", percent),
        Column("nll", "NLL", less=True),
        Column("ece", "ECE", less=True),
    )
    curves = (
        ("nats", True, ("loss", "eval_nll")),
        ("", False, ("accuracy", "eval_top1", "lam")),
    )

    def __init__(self, config: Any, described: Any = None):
        super().__init__(config, described)
        fields = config.data
        source = self.source(self.main_split)
        transform = self._augment()
        if fields.train_split:
            _check_trained(source)
        self._shape = data.image_shape(source, transform)
        self._num_classes = source.num_classes
        for field in ("mean", "std"):
            _check_channels(field, fields[field], source.channels)
        self.objective = Classification(
            num_classes=source.num_classes,
            mean=tuple(fields.mean),
            std=tuple(fields.std),
            label_smoothing=fields.label_smoothing,
            mixup_alpha=fields.mixup_alpha,
            cutmix_alpha=fields.cutmix_alpha,
            erase_probability=fields.get("erase_probability", 0.0),
        )

    def _open(self, split):
        return self._images.split(split)

    @functools.cached_property
    def _images(self) -> data.ImageSet:
        fields = self._config.data
        return data.ImageSet(
            fields.name,
            data_dir=fields.data_dir or None,
            path=fields.path or None,
            undecodable=fields.get("undecodable", "stop"),
            channels=3 if 3 in (len(fields.mean), len(fields.std)) else None,
            in_place=fields.get("in_place", False),
            classes=fields.get("classes", ""),
            held_out=fields.get("held_out", data.HELD_OUT),
            label_field=fields.get("label_field", ""),
        )

    def class_names(self):
        return self.source(self.main_split).class_names

    def model_arguments(self):
        return {"num_classes": self._num_classes}

    def row(self):
        return {
            "image": jax.ShapeDtypeStruct(self._shape, jnp.uint8),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def _augment(self) -> Any:
        fields = self._config.data
        return data.augment.build(fields.augment, train=True, mean=fields.mean)

    def train_batches(self, **arguments):
        batches = super().train_batches(augment=self._augment(), **arguments)
        return self._noting_stand_ins(batches)

    def _noting_stand_ins(self, batches: Any) -> Iterator[dict[str, Any]]:
        with contextlib.closing(batches):
            for batch in batches:
                numbers = batch.pop(data.STOOD_IN, np.empty(0))
                self.stood_in.update(numbers[numbers >= 0].tolist())
                yield batch

    def eval_batches(self, split, **arguments):
        return super().eval_batches(split, transform=self._as_evaluated(), **arguments)

    def images(self, split: str, numbers: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C], examples as evaluation shows them to people."""
        rows = self.source(split).rows(self._as_evaluated())
        return rows.load(numbers, np.empty((len(numbers), 0)))["image"]

    def _as_evaluated(self) -> Any:
        return data.augment.build(self._config.data.augment, train=False)

    def summarize(self, sums, split):
        del split
        return summarize(sums)

    @staticmethod
    def rank(scores):
        return scores["top1"]

    def describe(self):
        fields = self._config.data
        source = self.source(self.main_split)
        return f"{fields.name}, {len(source):,} images"

    def details(self):
        sources = list(self._sources.values())
        ignored = {
            f"of {source.split} that cannot be decoded": source.left_out
            for source in sources
        }
        rows = [
            ("classes", f"{self._num_classes:,}: {_shortened(self.class_names())}"),
            ("images", "; ".join(map(_size, sources))),
            ("left out", counted({**ignored, **sources[0].ignored})),
        ]
        return [row for row in rows if row[1]]


def _size(source: data.ImageSource) -> str:
    """Of a split: "train 36, 16 to 20 a class"."""
    text, counts = f"{source.split} {len(source):,}", source.class_counts
    if counts is None:
        return text
    held = counts[counts > 0]
    least, most = held.min(), held.max()
    spread = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    text = f"{text}, {spread} a class"
    return text if len(held) == len(counts) else f"{text} of {len(held):,} classes"


def _shortened(names: Sequence[str], most: int = 12) -> str:
    if len(names) > most:
        names = [*names[: most - 2], "...", names[-1]]
    return ", ".join(map(printable, names))


def _check_trained(source: data.ImageSource) -> None:
    """Every class has an image to train on."""
    for label in np.flatnonzero(source.class_counts == 0)[:1]:
        name = source.class_names[label]
        raise UserError(
            f"config.data.train_split={source.split!r} holds no image of class {name!r}"
        )


def _check_channels(field: str, value: Any, channels: int) -> None:
    numbers = all(isinstance(v, int | float) for v in value)
    if len(value) not in (1, channels) or not numbers:
        raise UserError(f"config.data.{field} must be 1 or 3 numbers, got {value}")
