"""What a data set brings to the pipeline: how its examples become rows of a batch."""

from typing import Protocol

import numpy as np

from normjax.core.errors import UserError
from normjax.data.augment import Transform
from normjax.data.decode import Images

Batch = dict[str, np.ndarray]

STOOD_IN = "stood_in"
"""Rows that hold another example than they should, see `ImageRows`.

Example:
  >>> from normjax import data
  >>> data.STOOD_IN  # a key of batches of a source that skips
  'stood_in'
"""

DEEP = "deep"
"""In a worker's batch: number of an image of more than eight bits it found, or -1."""


class Rows(Protocol):
    """Random access to rows. It pickles, and threads may share it."""

    @property
    def num_uniforms(self) -> int:
        """k, the number of uniforms that a row of training takes."""
        ...

    def __len__(self) -> int: ...

    def blank(self, count: int) -> Batch:
        """`count` rows past the last example; "mask" in them, if any, is False."""
        ...

    def load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        """Rows `indices`, int64 [B], with the uniforms u, float64 [B, k or 0]."""
        ...


class Source(Protocol):
    """A split of a data set.

    Attributes:
      digest: another one where the data has changed, wherever and whenever it lies.
    """

    digest: str

    def __len__(self) -> int: ...

    def rows(self, transform: Transform | None) -> Rows:
        """Its rows, images among them after `transform`."""
        ...


class Labelled(Protocol):
    """Images with labels, as `sources.ImageSource` has them and `ImageRows` needs them.

    Attributes:
      shape: (H, W, C) if all images share it, else None.  channels: 1 or 3.
      skip: whether images that cannot be decoded are stood in for.
      stand_ins: numbers of those found so far, and of what stands in for each.
      deep: number of an image of more than eight bits that was found, or -1.
    """

    name: str
    shape: tuple[int, int, int] | None
    channels: int
    skip: bool
    stand_ins: dict[int, int]
    deep: int

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> tuple[Images, np.ndarray]:
        """Images uint8 [B, H, W, C], or a list of [H, W, C], and labels int64 [B]."""
        ...

    def check_deep(self, number: int) -> None:
        """Raise UserError if image `number` fills another range than those here."""
        ...


def image_shape(source: Labelled, transform: Transform | None) -> tuple[int, int, int]:
    """The one shape (H, W, C) that images of `source` have after `transform`.

    Args:
      source: an `ImageSource` or alike.  transform: of `augment.build`, or None.

    Raises:
      UserError: they have different sizes, and the transform does not give them one.

    Example:
      >>> from normjax import data
      >>> source = data.open_images("digits", "test")
      >>> crop = data.augment.build({"image_size": 4}, train=True)
      >>> data.image_shape(source, None), data.image_shape(source, crop)
      ((8, 8, 1), (4, 4, 1))
    """
    shape = source.shape
    if shape is None:
        size = transform.image_size if transform else 0
        if not size:
            rule = "set augment.image_size (for example 224)"
            raise UserError(f"images of {source.name!r} have different sizes: {rule}")
        shape = (size, size, source.channels)
    return transform.output_shape(shape) if transform else shape


class ImageRows:
    """Rows {"image": uint8 [B, H, W, C], "label": int32 [B]}.

    Of a source that skips, also {`STOOD_IN`: int64 [B]}: the number of the example
    that another one stands in for, or -1.
    """

    def __init__(self, source: Labelled, transform: Transform | None):
        self._source, self._transform = source, transform
        self._shape = image_shape(source, transform)

    def note(self, batch: Batch) -> None:
        """Leave in a worker's batch what others are to compare."""
        batch[DEEP] = np.full(1, self._source.deep)

    def compare(self, batch: Batch, known: set[int]) -> None:
        """Take it out, and compare the ranges of gray that workers have found.

        Args:
          known: numbers compared so far, which grow.

        Raises:
          UserError: they differ.
        """
        number = int(batch.pop(DEEP)[0])
        if number >= 0 and number not in known:
            self._source.check_deep(number)
            known.add(number)

    @property
    def num_uniforms(self) -> int:
        return self._transform.num_uniforms if self._transform else 0

    def __len__(self) -> int:
        return len(self._source)

    def blank(self, count: int) -> Batch:
        image = np.zeros((count, *self._shape), np.uint8)
        return {"image": image, "label": np.zeros(count, np.int32)}

    def load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        images, labels = self._source.gather(indices)
        if self._transform:
            images = self._transform(images, u)
        batch = {"image": np.asarray(images), "label": labels.astype(np.int32)}
        if self._source.skip:
            found = np.isin(indices, list(self._source.stand_ins))
            batch[STOOD_IN] = np.where(found, indices, -1)
        return batch
