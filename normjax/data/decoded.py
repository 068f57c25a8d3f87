"""Images that are decoded as they are asked for."""

import abc
import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normjax.core.errors import UserError
from normjax.data import decode, prepared
from normjax.data.augment import Transform
from normjax.data.decode import Images
from normjax.data.rows import ImageRows


class DecodedImages(abc.ABC):
    """Images and their labels, decoded as they are asked for.

    Attributes:
      name: data set.  split: its split.  class_names: tuple of str.
      channels: 1 (gray) or 3 (RGB).  num_examples: examples in the split.
      class_counts: examples of each class, int64 [num_classes], if they are known.
      shape: (H, W, C) if all images share it, else None.
      digest: of the data set, to tell it from a changed one.
      left_out: images of the split that could not be read when it was prepared, and
        are no examples.
      ignored: numbers of other files, by reason.
      skip: whether images that cannot be decoded are stood in for.
      deep: number of the first image found here of more than eight bits, or -1.
      stand_ins: those found so far, with the example that stands in for each: the next
        one that can be decoded, behind the last the first.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    channels: int
    num_examples: int
    class_counts: np.ndarray | None
    shape: tuple[int, int, int] | None
    digest: str
    left_out: int
    ignored: Mapping[str, int]
    skip: bool
    deep: int = -1
    stand_ins: dict[int, int]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.num_examples

    def meets(self, other: Any) -> bool:
        """Whether another split of the same set has examples of this one."""
        return self.split == other.split

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
        return self._decode(indices)

    @abc.abstractmethod
    def name_of(self, index: int) -> str:
        """Where example `index` comes from, for messages."""

    @abc.abstractmethod
    def _read(self, indices: Sequence[int] | np.ndarray) -> list[tuple[bytes, int]]:
        """Encoded images and labels."""

    def _decode(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        images, labels = [], []
        for index, pair in zip(indices.tolist(), self._read(indices), strict=True):
            try:
                image, label = self._image(index, pair[0]), pair[1]
            except decode.Undecodable as error:
                image, label = self._stand_in(index, error)
            images.append(image)
            labels.append(label)
        return images, np.array(labels, np.int64)

    def _image(self, index: int, encoded: bytes) -> np.ndarray:
        image, fills = decode.decode_with_range(encoded, self.channels)
        if fills:
            self._range.check(fills, self.name_of(index))
            self.deep = index if self.deep < 0 else self.deep
        return image

    def check_deep(self, number: int) -> None:
        """Compare the range of an image, which another process found, with that here.

        Raises:
          UserError: they differ.
        """
        try:
            self._image(number, self.read(number)[0])
        except decode.Undecodable as error:
            what = f"cannot decode {self.name_of(number)}"
            raise UserError(f"{what}: {error}") from None

    @functools.cached_property
    def _range(self) -> decode.OneRange:
        return decode.OneRange()

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
                image = self._image(other, encoded)
                self._note(index, other, what)
                return image, label
        raise UserError(
            f"no image of {self.name!r} split {self.split!r} can be decoded"
        )

    def _note(self, index: int, other: int, what: str) -> None:
        if index not in self.stand_ins:
            prepared.say(f"{what}; example {other} stands in")
        self.stand_ins[index] = other
