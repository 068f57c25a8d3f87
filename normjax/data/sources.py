"""Image sources: prepared data sets with random access, decoded by PIL."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of, printable
from normjax.data import decode, prepared
from normjax.data.augment import Transform
from normjax.data.decode import Images
from normjax.data.folder import Folder, scan
from normjax.data.rows import ImageRows
from normjax.data.slices import labels_of, take

EMBEDDED = ("digits", "image_folder")
"""Data sets that need no TFDS preparation by the user."""

UNDECODABLE = ("stop", "skip")
"""What to do with an image that cannot be decoded: raise, or take the next that can."""

DECODED_BYTES = 2**30
"""Sets of one image size that decode to less than this are decoded once, to a file."""


class ImageSource:
    """One split of an image classification set. Threads may share it; it pickles.

    A set of one image size that fits in `DECODED_BYTES` is decoded when it is first
    opened, into a memory-mapped file that all processes share: decoding small images
    again in every epoch costs more host time than a small model's step.

    Attributes:
      name: data set.  split: its split.  class_names: tuple of str.
      channels: 1 (gray) or 3 (RGB).  num_examples: examples in the split.
      class_counts: examples of each class, int64 [num_classes], of an image folder.
      shape: (H, W, C) if all images share it, else None.
      digest: of the data set, to tell it from a changed one: of all names, labels and
        bytes of an image folder; of the name, version and sizes of another set.
      left_out: images of the folder's split that could not be read when it was
        prepared, and are no examples.
      ignored: numbers of other files of an image folder, by reason.
      skip: whether images that cannot be decoded are stood in for.
      stand_ins: those found so far, with the example that stands in for each: the next
        one that can be decoded, behind the last the first.
    """

    def __init__(
        self, name, split, builder, *, image_key, label_key, shape, cache, skip, ignored
    ):
        """Reads `split` of the prepared TFDS `builder`.

        Args:
          shape: (H | None, W | None, C) of the images; those of the set may be gray
            where C is 3.
          cache: folder that decoded sets are kept in.  skip, ignored: see above.
        """
        import tensorflow_datasets as tfds

        self.name: str = name
        self.split, self.skip = split, bool(skip)
        self.stand_ins: dict[int, int] = {}
        self.ignored: Mapping[str, int] = ignored
        metadata: Any = builder.info.metadata or {}
        self.digest = metadata.get("digest") or _digest(builder)
        names = metadata.get("class_names") or builder.info.features[label_key].names
        self.class_names = tuple(names)
        self.channels: int = shape[-1]
        self.shape: tuple[int, int, int] | None = shape if all(shape) else None
        self._keys = image_key, label_key
        runs = metadata.get("label_runs")
        whole, self._taken = take(name, builder, split, runs)
        left_out = metadata.get("left_out", {})
        self.left_out = sum(left_out.get(part, 0) for part in whole.split("+"))
        encoded = {image_key: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(whole, decoders=encoded)
        self.num_examples = len(self._records)
        self.class_counts: np.ndarray | None = None
        if runs:
            labels = np.concatenate([labels_of(runs[p]) for p in whole.split("+")])
            if self._taken is not None:
                labels = labels[self._taken]
                self.num_examples = len(self._taken)
                self.digest = f"{self.digest}-{split}"
            self.class_counts = np.bincount(labels, minlength=self.num_classes)
        self._decoded_at: pathlib.Path | None = None
        if self.shape and self.num_examples * np.prod(self.shape) < DECODED_BYTES:
            key = prepared.preparation_key(builder, split) + skip * "-skip"
            target = cache / "decoded" / f"{key}-{self.channels}"
            prepared.prepare(target, self._write_decoded)
            self._decoded_at = target
        self._map_decoded()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.num_examples

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != "_decoded"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._map_decoded()

    def _map_decoded(self) -> None:
        self._decoded: tuple[np.ndarray, np.ndarray] | None = None
        if self._decoded_at:
            with prepared.intact(self._decoded_at):
                images = np.load(self._decoded_at / "images.npy", mmap_mode="r")
                self._decoded = images, np.load(self._decoded_at / "labels.npy")
                if self.skip:
                    pairs = np.load(self._decoded_at / "stand_ins.npy")
                    self.stand_ins = dict(pairs.tolist())

    def _write_decoded(self, folder: pathlib.Path) -> None:
        """Decode all examples into `folder`."""
        from normjax.data.builders import track

        shape = (self.num_examples, *(self.shape or ()))
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", "u1", shape)
        labels = np.empty(self.num_examples, np.int64)
        chunks = [
            np.arange(start, min(start + 256, self.num_examples))
            for start in range(0, self.num_examples, 256)
        ]
        for chunk in track(chunks, f"decoding {self.name} {self.split}"):
            decoded, labels[chunk] = self._decode(chunk)
            images[chunk] = np.stack(decoded)
        images.flush()
        np.save(folder / "labels.npy", labels)
        pairs = np.array(list(self.stand_ins.items()), np.int64).reshape(-1, 2)
        np.save(folder / "stand_ins.npy", pairs)

    def rows(self, transform: Transform | None) -> ImageRows:
        """Rows of batches: the images after `transform`, and their labels.

        Raises:
          UserError: images without one shape.
        """
        return ImageRows(self, transform)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded bytes and the label of example `index`."""
        return self._read([index])[0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Example `index`: uint8 [H, W, C] and its label.

        Raises:
          IndexError: `index` outside the split.  UserError: an undecodable image.
        """
        if not -self.num_examples <= index < self.num_examples:
            raise IndexError(f"{index} is outside {self.num_examples} examples")
        images, labels = self.gather(np.array([index % self.num_examples]))
        return images[0], int(labels[0])

    def gather(self, indices: np.ndarray) -> tuple[Images, np.ndarray]:
        """Many examples at once.

        Args:
          indices: int64 [B].

        Returns:
          Images, uint8 [B, H, W, C] (a list of [H, W, C] where sizes differ), and
          labels, int64 [B].

        Raises:
          UserError: an undecodable image, by name.
        """
        if self._decoded is None:
            return self._decode(indices)
        images, labels = self._decoded
        return images[indices], labels[indices]

    def name_of(self, index: int) -> str:
        """Where example `index` comes from, for messages."""
        where = f"example {index} of {self.name!r} split {self.split!r}"
        record = self._records[self._places([index])[0]]
        if "file" not in record:
            return where
        return f"{where} ({printable(os.fsdecode(record['file']))})"

    def _places(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        """Where examples lie in the records."""
        taken = np.asarray(indices) if self._taken is None else self._taken[indices]
        return taken.tolist()

    def _read(self, indices: Sequence[int] | np.ndarray) -> list[tuple[bytes, int]]:
        image_key, label_key = self._keys
        records = self._records.__getitems__(self._places(indices))
        return [(record[image_key], int(record[label_key])) for record in records]

    def _decode(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        images, labels = [], []
        for index, pair in zip(indices.tolist(), self._read(indices), strict=True):
            try:
                image, label = decode.decode(pair[0], self.channels), pair[1]
            except decode.Undecodable as error:
                image, label = self._stand_in(index, error)
            images.append(image)
            labels.append(label)
        return images, np.array(labels, np.int64)

    def _stand_in(self, index: int, error: Exception) -> tuple[np.ndarray, int]:
        """The next image that can be decoded, and its label."""
        what = f"cannot decode {self.name_of(index)}: {error}"
        if not self.skip:
            hint = "config.data.undecodable=skip takes the next one instead"
            raise UserError(f"{what}; {hint}") from None
        for step in range(1, self.num_examples):
            other = (index + step) % self.num_examples
            encoded, label = self.read(other)
            with contextlib.suppress(decode.Undecodable):
                image = decode.decode(encoded, self.channels)
                self._note(index, other, what)
                return image, label
        raise UserError(
            f"no image of {self.name!r} split {self.split!r} can be decoded"
        )

    def _note(self, index: int, other: int, what: str) -> None:
        if index not in self.stand_ins:
            prepared.say(f"{what}; example {other} stands in")
        self.stand_ins[index] = other


def open_images(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    path: str | os.PathLike | None = None,
    undecodable: str = "stop",
    channels: int | None = None,
) -> ImageSource:
    """Open one split of an image classification set; embedded sets are prepared first.

    Args:
      name: "digits" (scikit-learn's), "image_folder" (the user's own, see
        `normjax.data.folder.scan`), or a TFDS name such as "cifar10", prepared as
        array_record before; nothing is ever downloaded.
      split: "train", "test", ...; TFDS slices such as "train[:90%]" work too. Of an
        image folder, which is sorted by class, each takes that part of every class.
      data_dir: where prepared sets lie. Default: for embedded sets the environment
        variable NORMJAX_DATA_DIR, else ~/.cache/normjax; for others TFDS's own.
      path: the directory or zip of "image_folder".
      undecodable: what is to happen with images that cannot be decoded: "stop" raises;
        "skip" leaves them out when an image folder is prepared, and takes the next
        image that can be decoded where another set has them.
      channels: 3 makes gray images RGB; None leaves them.

    Raises:
      UserError: unknown name or split, a set that is not prepared or in a format
        without random access, a faulty image folder.
    """
    if undecodable not in UNDECODABLE:
        raise UserError(one_of("data.undecodable", undecodable, UNDECODABLE))
    skip = undecodable == "skip"
    if (name == "image_folder") != (path is not None):
        rule = "path names the directory or zip of 'image_folder', and only that"
        raise UserError(f"data set {name!r} with path={path and str(path)!r}: {rule}")
    cache = prepared.cache_dir(data_dir if name in EMBEDDED else None)
    keys, ignored = ("image", "label"), {}
    if name == "digits":
        builder = _open_digits(cache)
        shape = builder.info.features["image"].shape
    elif path is not None:
        folder = scan(path)
        builder = _open_folder(cache, folder, skip=skip)
        shape, ignored = builder.info.metadata["image_shape"], folder.left_out
    else:
        builder = prepared.open_tfds(name, data_dir, EMBEDDED)
        keys = _classification_keys(name, builder.info.features)
        shape = builder.info.features[keys[0]].shape
    image_key, label_key = keys
    return ImageSource(
        name,
        split,
        builder,
        image_key=image_key,
        label_key=label_key,
        shape=(*shape[:2], channels or shape[-1]),
        cache=cache,
        skip=skip,
        ignored=ignored,
    )


def _open_digits(root: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    from normjax.data import builders

    target = root / "digits" / builders.VERSION
    builders.prepare(builders.Digits, target)
    return tfds.builder_from_directory(target)


def _digest(builder: Any) -> str:
    """Of what TFDS knows of a prepared set."""
    sizes = {k: (s.num_examples, s.num_bytes) for k, s in builder.info.splits.items()}
    identity = repr((builder.info.full_name, sorted(sizes.items())))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _open_folder(root: pathlib.Path, folder: Folder, *, skip: bool) -> Any:
    import tensorflow_datasets as tfds

    from normjax.data import builders

    # What was prepared without an undecodable image is good for both.
    target = root / "image_folder" / folder.fingerprint / builders.FOLDER_VERSION
    if skip and not target.is_dir():
        target = target.parent / "skip" / builders.FOLDER_VERSION
    builders.prepare_folder(folder, target, skip=skip)
    return tfds.builder_from_directory(target)


def _classification_keys(name: str, features) -> tuple[str, str]:
    """The features that hold the image and its class."""
    import tensorflow_datasets as tfds

    kinds = (("image", tfds.features.Image), ("label", tfds.features.ClassLabel))
    keys = []
    for key, kind in kinds:
        found = [k for k, feature in features.items() if isinstance(feature, kind)]
        if key not in found and len(found) != 1:
            held = ", ".join(features)
            raise UserError(f"{name!r} is no image classification set (has: {held})")
        keys.append(key if key in found else found[0])
    image = features[keys[0]]
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3):
        kind = f"{np.dtype(image.np_dtype)} {image.shape}"
        raise UserError(f"images of {name!r} are {kind}; need uint8, 1 or 3 channels")
    return keys[0], keys[1]
