"""Image sources: prepared data sets with random access, decoded by PIL."""

import hashlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from normjax.core.errors import printable
from normjax.data import prepared
from normjax.data.decode import Images
from normjax.data.decoded import DecodedImages
from normjax.data.slices import labels_of, ranges_of, take

DECODED_BYTES = 2**30
"""Sets of one image size that decode to less than this are decoded once, to a file."""


class ImageSource(DecodedImages):
    """One split of an image classification set. Threads may share it; it pickles.

    A set of one image size that fits in `DECODED_BYTES` is decoded when it is first
    opened, into a memory-mapped file that all processes share: decoding small images
    again in every epoch costs more host time than a small model's step.

    Attributes:
      digest: of all names, labels and bytes of people's own sets; of the name, version
        and sizes of others.
      class_counts: of people's own sets alone.

    Example:
      >>> import numpy as np
      >>> from normjax import data
      >>> source = data.open_images("digits", "test")
      >>> isinstance(source, data.ImageSource)
      True
      >>> images, labels = source.gather(np.array([0, 1, 2]))
      >>> images.shape, images.dtype, labels.shape, source.class_names[:3]
      ((3, 8, 8, 1), dtype('uint8'), (3,), ('0', '1', '2'))
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

        self.name = name
        self.split, self.skip = split, bool(skip)
        self.stand_ins = {}
        self.ignored = ignored
        metadata: Any = builder.info.metadata or {}
        self.digest = metadata.get("digest") or _digest(builder)
        names = metadata.get("class_names") or builder.info.features[label_key].names
        self.class_names = tuple(names)
        self.channels = shape[-1]
        self.shape = shape if all(shape) else None
        self._keys = image_key, label_key
        runs = metadata.get("label_runs")
        whole, self._taken = take(name, builder, split, runs)
        self._ranges = ranges_of(builder, split)
        left_out = metadata.get("left_out", {})
        self.left_out = sum(left_out.get(part, 0) for part in whole.split("+"))
        encoded = {image_key: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(whole, decoders=encoded)
        self.num_examples = len(self._records)
        self.class_counts = None
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
        prepared.check_room(folder, math.prod(shape), f"decoded {self.split}")
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", "u1", shape)
        labels = np.empty(self.num_examples, np.int64)
        chunks = [
            np.arange(start, min(start + 256, self.num_examples))
            for start in range(0, self.num_examples, 256)
        ]
        for chunk in track(chunks, f"decoding {self.name} {self.split}", len(chunks)):
            decoded, labels[chunk] = self._decode(chunk)
            images[chunk] = np.stack(decoded)
        images.flush()
        np.save(folder / "labels.npy", labels)
        pairs = np.array(list(self.stand_ins.items()), np.int64).reshape(-1, 2)
        np.save(folder / "stand_ins.npy", pairs)

    def meets(self, other):
        return any(
            name == theirs and max(first, there) < min(end, until)
            for name, first, end in self._ranges
            for theirs, there, until in other._ranges
        )

    def gather(self, indices: np.ndarray) -> tuple[Images, np.ndarray]:
        if self._decoded is None:
            return self._decode(indices)
        images, labels = self._decoded
        return images[indices], labels[indices]

    def name_of(self, index: int) -> str:
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


def _digest(builder: Any) -> str:
    """Of what TFDS knows of a prepared set."""
    sizes = {k: (s.num_examples, s.num_bytes) for k, s in builder.info.splits.items()}
    identity = repr((builder.info.full_name, sorted(sizes.items())))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
