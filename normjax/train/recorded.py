"""What a teacher answered to the images of a run, stored (TinyViT; Wu et al., 2022)."""

import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from normjax.core.errors import UserError
from normjax.core.files import reason
from normjax.core.paths import local_path
from normjax.records.json_files import read_json, write_json
from normjax.tasks import (
    Recorded,
    Task,
    largest_probabilities,
    pack_records,
    unpack_records,
)
from normjax.train.rule import Rule
from normjax.train.teacher import teacher_of

ROWS, ABOUT = "records.npy", "records.json"
FIXED = ("seed", "batch_size")
"""Fields of a config that images of a batch depend on, beside `config.data`."""
MIXED = ("mixup_alpha", "cutmix_alpha", "erase_probability")
"""Fields of `config.data` that change images behind the place where they are seen."""


class RecordedTeacher(Rule):
    """Targets of `config.distill.records`, in the place of labels.

    A record is found by the place of its row in the run; where TinyViT keeps the seed
    of the augmentation, it keeps a checksum of the augmented image, so that records of
    other data, of another order or augmentation are noticed.

    Args:
      config: of the run.  task: with its data.
    """

    def __init__(self, config: Any, task: Task):
        self._config, self._task = config, task

    def objective(self, own):
        """Raises UserError: no records, or those of other classes or batches."""
        classes = self._task.model_arguments()["num_classes"]
        self._records  # noqa: B018  # there they are checked
        return Recorded(own, classes)

    def row(self):
        kinds = {"values": np.float16, "classes": np.int16}
        count = (self._records.shape[1] - 4) // 4
        return {k: jax.ShapeDtypeStruct((count,), v) for k, v in kinds.items()}

    def rows(self, number, batch, ours):
        first = number * self._config.batch_size
        place = slice(first + ours.start, first + ours.stop)
        if place.stop > len(self._records):  # made ahead; trained on, it would be seen
            blank = {k: (len(batch["image"]), *v.shape) for k, v in self.row().items()}
            ends = {"values": np.float16("nan"), "classes": np.int16(0)}
            return {k: np.full(shape, ends[k]) for k, shape in blank.items()}
        seeds, classes, values = unpack_records(self._records[place])
        if not np.array_equal(seeds, checksums(batch["image"])):
            raise UserError(
                f"config.distill.records: batch {number} has other images than those "
                "that the teacher saw: its data or their augmentation differ"
            )
        return {"values": values, "classes": classes}

    @functools.cached_property
    def _records(self) -> np.ndarray:
        config, where = self._config, "config.distill.records"
        check_records(where, config)
        folder = local_path(where, config.distill.records)
        try:
            about = read_json(folder / ABOUT)
            records = np.load(folder / ROWS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{where} {folder}: no records ({reason(error)})") from None
        for name, value in _about(config, self._task).items():
            if about[name] != value:
                raise UserError(
                    f"{where} {folder} are of {name}={about[name]}, this run has "
                    f"{value}"
                )
        wanted = config.total_steps * config.batch_size
        if len(records) < wanted:
            raise UserError(
                f"{where} {folder} are of {len(records):,} images, this run sees "
                f"{wanted:,}"
            )
        return records


def check_records(where: str, config: Any) -> None:
    """Raise UserError for a run whose images nobody can have seen before."""
    if config.task != "image_classification":
        raise UserError(f"{where}: of images only, not of {config.task}")
    for name in MIXED:
        if config.data.get(name):
            raise UserError(
                f"{where} needs config.data.{name}=0: the teacher does not see what "
                "becomes of images in a batch"
            )


def _about(config: Any, task: Task) -> dict[str, Any]:
    classes = task.model_arguments()["num_classes"]
    return {**{name: config[name] for name in FIXED}, "classes": classes}


def checksums(images: np.ndarray) -> np.ndarray:
    """int32 [B], 31 bits of the CRC-32 of each of uint8 [B, H, W, C]."""
    found = [zlib.crc32(np.ascontiguousarray(x).tobytes()) for x in images]
    return (np.asarray(found, np.int64) & 0x7FFFFFFF).astype(np.int32)


def write_records(
    experiment: Any, workdir: Path, build_model: Any, folder: Path, largest: int
) -> int:
    """Write what the run in `workdir` answers to every image that a run is to see.

    Args:
      experiment: that learns from it.
      build_model: (config, **arguments) -> the model of a run.
      folder: that gets the records; a new one.
      largest: probabilities of an image that are kept.

    Returns:
      how many images.

    Raises:
      UserError: a teacher that does not fit, or a folder that is there.
    """
    config, task = experiment.config, experiment.task
    check_records("records", config)
    if jax.process_count() > 1:
        raise UserError("records are written by one process")
    classes = task.model_arguments()["num_classes"]
    if not 0 < largest < classes:
        raise UserError(f"--largest={largest} must lie in 1..{classes - 1}")
    teacher = teacher_of(workdir, "--workdir", config, task, build_model)

    @jax.jit
    def found(batch):
        logits = teacher.answer(*task.objective.inputs(batch))
        return largest_probabilities(logits, largest)

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"records {folder}: {reason(error)}") from None
    shape = config.total_steps * config.batch_size, 4 + 4 * largest
    records = np.lib.format.open_memmap(folder / ROWS, "w+", np.uint8, shape)
    batches = experiment.train_batches()
    for step in range(config.total_steps):
        batch = next(batches)
        values, kinds = jax.device_get(found(batch))
        seeds = checksums(jax.device_get(batch["image"]))
        first = step * config.batch_size
        rows = pack_records(seeds, kinds, values)
        records[first : first + config.batch_size] = rows
    batches.close()
    records.flush()
    write_json(folder / ABOUT, {**_about(config, task), "teacher": str(workdir)})
    return shape[0]
