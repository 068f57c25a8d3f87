"""Image sources: prepared data sets with random access, decoded by PIL."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from normjax.core.errors import UserError, one_of
from normjax.data import decode, prepared
from normjax.data.augment import Transform
from normjax.data.decode import Images
from normjax.data.folder import scan
from normjax.data.rows import ImageRows

EMBEDDED = ("digits", "image_folder")
"""Data sets that need no TFDS preparation by the user."""

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
      shape: (H, W, C) if all images share it, else None.
    """

    def __init__(self, name, split, builder, *, image_key, label_key, shape, cache):
        """Reads `split` of the prepared TFDS `builder`.

        Args:
          shape: (H | None, W | None, C) of the images.
          cache: folder that decoded sets are kept in.
        """
        import tensorflow_datasets as tfds

        self.name, self.split = name, split
        self.class_names = tuple(builder.info.features[label_key].names)
        self.channels = shape[-1]
        self.shape = tuple(shape) if all(shape) else None
        self._keys = image_key, label_key
        skip = {image_key: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=skip)
        self.num_examples = len(self._records)
        self._decoded_at: pathlib.Path | None = None
        if self.shape and self.num_examples * np.prod(self.shape) < DECODED_BYTES:
            target = cache / "decoded" / prepared.preparation_key(builder, split)
            self._write_decoded(target)
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
            images = np.load(self._decoded_at / "images.npy", mmap_mode="r")
            self._decoded = images, np.load(self._decoded_at / "labels.npy")

    def _write_decoded(self, target: pathlib.Path) -> None:
        """Decode all examples into `target`, complete or not at all."""
        from normjax.data.builders import track

        if target.exists():
            return
        with prepared.complete_folder(target) as made:
            shape = (self.num_examples, *(self.shape or ()))
            images = np.lib.format.open_memmap(made / "images.npy", "w+", "u1", shape)
            labels = np.empty(self.num_examples, np.int64)
            chunks = [
                np.arange(start, min(start + 256, self.num_examples))
                for start in range(0, self.num_examples, 256)
            ]
            for chunk in track(chunks, f"decoding {self.name} {self.split}"):
                decoded, labels[chunk] = self._decode(chunk)
                images[chunk] = np.stack(decoded)
            images.flush()
            np.save(made / "labels.npy", labels)

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
        record = self._records[int(index)]
        return f"{where} ({record['file'].decode()})" if "file" in record else where

    def _read(self, indices: Sequence[int] | np.ndarray) -> list[tuple[bytes, int]]:
        image_key, label_key = self._keys
        records = self._records.__getitems__([int(index) for index in indices])
        return [(record[image_key], int(record[label_key])) for record in records]

    def _decode(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        pairs, images = self._read(indices), []
        for index, (encoded, _) in zip(indices, pairs, strict=True):
            try:
                images.append(decode.decode(encoded, self.channels))
            except decode.UNREADABLE as error:
                where = self.name_of(index)
                raise UserError(f"cannot decode {where}: {error}") from None
        return images, np.array([label for _, label in pairs], np.int64)


def open_images(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    path: str | os.PathLike | None = None,
) -> ImageSource:
    """Open one split of an image classification set; embedded sets are prepared first.

    Args:
      name: "digits" (scikit-learn's), "image_folder" (the user's own, see
        `normjax.data.folder.scan`), or a TFDS name such as "cifar10", prepared as
        array_record before; nothing is ever downloaded.
      split: "train", "test", ...; TFDS slices such as "train[:90%]" work too.
      data_dir: where prepared sets lie. Default: for embedded sets the environment
        variable NORMJAX_DATA_DIR, else ~/.cache/normjax; for others TFDS's own.
      path: the directory or zip of "image_folder".

    Raises:
      UserError: unknown name or split, a set that is not prepared or in a format
        without random access, a faulty image folder.
    """
    if (name == "image_folder") != (path is not None):
        rule = "path names the directory or zip of 'image_folder', and only that"
        raise UserError(f"data set {name!r} with path={path and str(path)!r}: {rule}")
    if name == "digits":
        builder = _open_digits(prepared.cache_dir(data_dir))
        shape = builder.info.features["image"].shape
        keys = "image", "label"
    elif name == "image_folder":
        builder = _open_folder(prepared.cache_dir(data_dir), path)
        shape = builder.info.metadata["image_shape"]
        keys = "image", "label"
    else:
        builder = prepared.open_tfds(name, data_dir, EMBEDDED)
        keys = _classification_keys(name, builder.info.features)
        shape = builder.info.features[keys[0]].shape
    try:
        builder.info.splits[split]
    except (KeyError, ValueError):
        message = one_of(f"split of {name!r}:", split, builder.info.splits)
        raise UserError(message) from None
    image_key, label_key = keys
    return ImageSource(
        name,
        split,
        builder,
        image_key=image_key,
        label_key=label_key,
        shape=shape,
        cache=prepared.cache_dir(data_dir if name in EMBEDDED else None),
    )


def _open_digits(root: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    from normjax.data import builders

    target = root / "digits" / builders.VERSION
    builders.prepare(builders.Digits, target)
    return tfds.builder_from_directory(target)


def _open_folder(root: pathlib.Path, path: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    from normjax.data import builders

    assert path is not None
    folder = scan(path)
    target = root / "image_folder" / folder.fingerprint / builders.VERSION
    builders.prepare_folder(folder, target)
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
