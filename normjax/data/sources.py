"""Image sources: prepared data sets with random access, decoded by PIL."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normjax.core.errors import UserError, printable
from normjax.data import decode, prepared
from normjax.data.augment import Transform
from normjax.data.decode import Images
from normjax.data.rows import ImageRows
from normjax.data.slices import labels_of, take

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


def _digest(builder: Any) -> str:
    """Of what TFDS knows of a prepared set."""
    sizes = {k: (s.num_examples, s.num_bytes) for k, s in builder.info.splits.items()}
    identity = repr((builder.info.full_name, sorted(sizes.items())))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
