"""TFDS builders of the embedded data sets, written and read without TensorFlow.

They yield encoded bytes and write array_record files; nothing here is imported
before a data set is opened, because tensorflow_datasets takes a second to import.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from normjax.core.errors import UserError
from normjax.data import decode, prepared
from normjax.data.checking import Seen, check
from normjax.data.folder import UNREADABLE, Folder, counted
from normjax.data.pipeline import available_cpus
from normjax.data.prepared import say

VERSION = "1.0.0"
FOLDER_VERSION = "1.2.0"

QUIET_SECONDS = 30
"""Between lines of progress where no bar can be."""


class Digits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's scanned digits: 1,797 images, uint8 [8, 8, 1], 10 classes.

    The test part of the UCI set of handwritten digits (Alpaydin & Kaynak, 1998), its
    values 0..16 scaled to 0..255. Stratified split, fixed once: 36 images of every
    class, evenly spaced over it, are test images, so test has 360 and train 1,437,
    both in scikit-learn's order.
    """

    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # nothing to download; TFDS's own property needs a missing package

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=list("0123456789")),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        is_test = np.zeros(len(images), bool)
        for label in range(10):
            members = np.flatnonzero(data.target == label)
            is_test[members[np.arange(36) * len(members) // 36 + 2]] = True
        return {
            "train": self._generate_examples(images[~is_test], data.target[~is_test]),
            "test": self._generate_examples(images[is_test], data.target[is_test]),
        }

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            decode.to_pil(image[..., None]).save(png, "PNG")
            png.seek(0)
            yield key, {"image": png, "label": int(label)}


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """The images of a `Folder`, their bytes as they are; every one is read to its end.

    The feature `file` holds the name. Metadata:

    - `image_shape`: [H, W, C], with H and W None where sizes differ; C is 1 if all
      images are gray, else 3.
    - `class_names`: of the labels; TFDS itself keeps none that have line ends.
    - `label_runs`: for each split, its labels in order, as pairs (label, how often).
    - `digest`: of all names, labels and bytes; neither place nor time is in it.
    - `left_out`: how many images of each split PIL cannot read to their end.

    Args:
      seen: what is known of images.
      skip: leave images out that cannot be read, and say so on stderr.

    Raises (while preparing):
      UserError: such an image, where they are not left out; a class of a split without
        any other; gray images deeper than eight bits whose values fill other ranges.
    """

    VERSION = tfds.core.Version(FOLDER_VERSION)
    url_infos = None  # as above

    def __init__(self, *, folder: Folder, seen: Seen, skip: bool = False, **kwargs):
        self._folder, self._seen, self._skip = folder, seen, skip
        self._sizes: set[tuple[int, int]] = set()
        self._all_gray = True
        self._range = decode.OneRange()
        self._digest = hashlib.sha256()
        self._left_out: dict[str, int] = {}
        self._label_runs: dict[str, list[tuple[int, int]]] = {}
        super().__init__(**kwargs)

    def _info(self):
        classes = len(self._folder.class_names)
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(num_classes=classes),
                    "file": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        splits = self._folder.splits.items()
        return {name: self._generate_examples(name, files) for name, files in splits}

    def _generate_examples(self, split, files):
        labels = []
        with self._folder.reader() as read:
            images = check(files, read, self._seen, available_cpus())
            shown = track(images, f"preparing {split}", len(files))
            for key, (name, label, encoded, content, found) in enumerate(shown):
                try:
                    self._note(name, found)
                except UNREADABLE as error:
                    self._refuse(name, error)
                    continue
                labels.append(label)
                self._digest.update(repr((split, name, label, content)).encode())
                image = io.BytesIO(encoded)
                yield key, {"image": image, "label": label, "file": os.fsencode(name)}
        self._check_read(split, files, labels)
        self._left_out[split] = len(files) - len(labels)
        runs = itertools.groupby(labels)
        self._label_runs[split] = [(label, len(list(run))) for label, run in runs]
        self._describe()

    def _note(self, name: str, found: decode.Verified | Exception) -> None:
        if isinstance(found, Exception):
            raise found
        self._range.check(found.fills, name)
        self._sizes.add((found.height, found.width))
        self._all_gray &= found.gray

    def _refuse(self, name: str, error: Exception) -> None:
        """Raise, or say that an image is left out."""
        where = f"{name!r} in {str(self._folder.path)!r}"
        reason = f"truncated, damaged or no image we can use ({error})"
        if self._skip:
            say(f"left out {where}: {reason}")
            return
        raise UserError(
            f"image_folder: cannot read {where}: {reason}; mend or remove this file, "
            "or leave it out by config.data.undecodable=skip"
        ) from None

    def _check_read(self, split: str, files: list, labels: list[int]) -> None:
        where = f"split {split!r} of {str(self._folder.path)!r}"
        if not labels:
            raise UserError(f"image_folder: no image of {where} can be read")
        for label in sorted({label for _, label in files} - set(labels)):
            name = self._folder.class_names[label]
            lost = sum(own == label for _, own in files)
            raise UserError(
                f"image_folder: class {name!r} has no image left in {where}: none of "
                f"{lost} can be read"
            )

    def _describe(self) -> None:
        size = next(iter(self._sizes)) if len(self._sizes) == 1 else (None, None)
        self.info.metadata.update(  # pyright: ignore
            image_shape=[*size, 1 if self._all_gray else 3],
            class_names=list(self._folder.class_names),
            label_runs=self._label_runs,
            digest=self._digest.hexdigest()[:16],
            left_out=self._left_out,
        )


def prepare(make: Callable[..., tfds.core.DatasetBuilder], target: pathlib.Path):
    """Build a data set into `target`, unless it is there; see `prepared.prepare`.

    Args:
      make: a builder class, or a partial of one.  target: becomes its version folder.

    Raises:
      UserError: `target` cannot be written, or what the builder raises.
    """
    prepared.prepare(target, functools.partial(_build, make))


def _build(make: Callable[..., tfds.core.DatasetBuilder], folder: pathlib.Path):
    with _quiet():
        builder = make(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def prepare_folder(folder: Folder, target: pathlib.Path, *, skip: bool) -> None:
    """`prepare` an `ImageFolder`, and say on stderr that it takes a while.

    Images that a process has decoded which was killed are not decoded again.
    """

    def build(made: pathlib.Path) -> pathlib.Path:
        count, start = sum(map(len, folder.splits.values())), time.monotonic()
        say(f"preparing {count:,} images of {str(folder.path)!r} (once)")
        if others := counted(folder.left_out):
            say(f"left out: {others}")
        for note in folder.notes:
            say(f"note: {note}")
        hint = "or read them where they lie by config.data.in_place=true"
        prepared.check_room(made, folder.num_bytes, f"a copy of {count:,} images", hint)
        seen, done = Seen(target.with_name(f".{target.name}.seen")), False
        if seen.known:
            say(f"{len(seen.known):,} of them were decoded by a process that was ended")
        try:
            given = {"folder": folder, "seen": seen, "skip": skip}
            built = _build(functools.partial(ImageFolder, **given), made)
            done = True
        finally:
            seen.close(keep=not done)
        say(f"prepared in {time.monotonic() - start:.0f} s in {str(target)!r}")
        return built

    prepared.prepare(target, build)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS announces itself on stdout and with progress bars; keep both off."""
    from tensorflow_datasets.core.utils import tqdm_utils

    active = tqdm_utils._active
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(active)


def track(items: Iterable, text: str, total: int) -> Iterable:
    """`items`, with a progress bar on stderr, or a line now and then."""
    if not sys.stderr.isatty():
        return _lines(items, text, total)
    from rich.console import Console
    from rich.progress import track

    return track(items, text, total, console=Console(stderr=True))


def _lines(items: Iterable, text: str, total: int) -> Iterator:
    said = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            say(f"{text}: {number:,} of {total:,}")
        yield item
