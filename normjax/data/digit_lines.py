"""Lines of scanned digits, side by side: a text that is read from its image."""

from typing import Any

import numpy as np

from normjax.core.errors import UserError
from normjax.data.image_sets import open_images
from normjax.data.made import Made, check_made, random_words
from normjax.data.rows import Batch

HEIGHT, SCALE, LARGEST_GAP = 32, 2, 8  # pixels
_STREAM = 3  # of random words, beside those of the other sets
_SPLITS = ("train", "test")
_EXAMPLES = {"train": 1_000_000, "test": 1_000}


def line_size(length: int) -> tuple[int, int]:
    """Height and width of the images of lines of at most so many digits, in pixels."""
    return HEIGHT, (SCALE * 8 + LARGEST_GAP) * length


class DigitLines(Made):
    """Images of 1 to L digits, 32 pixels high and 24 L wide, and what stands there.

    Digits are scikit-learn's scans (`data.open_images("digits")`), each pixel twice as
    high and wide, at random heights, up to 8 pixels behind one another; the rest of the
    line is black. Line i of a split is a pure function of (split, i), of scans of that
    split alone: nothing is stored.

    Rows are batches of {"image": uint8 [B, 32, 24 L, 1], "tokens": int32 [B, L]}; a
    digit d is token d + 1, behind the last one stand zeros.

    Attributes:
      name: of the set.  kind: what it is made of.  split: its split.  length: L.
      num_classes: digits, and the blank.
      num_examples: lines of the split.

    Example:
      >>> from normjax import data
      >>> source = data.open_lines("digit_lines", "test", length=3)
      >>> isinstance(source, data.DigitLines), source.num_classes
      (True, 11)
      >>> batch = source.load(range(2), None)
      >>> batch["image"].shape, batch["tokens"].shape
      ((2, 32, 72, 1), (2, 3))
    """

    name, kind, num_classes = "digit_lines", "lines of text", 11

    def __init__(self, split: str, length: int, **where: Any):
        super().__init__(split, _EXAMPLES[split])
        scans = open_images("digits", split, **where)
        self.length = length
        images, self._labels = scans.gather(np.arange(len(scans)))
        self._digits = np.repeat(np.repeat(images, SCALE, 1), SCALE, 2)

    def blank(self, count: int) -> Batch:
        """`count` empty lines."""
        return {
            "image": np.zeros((count, *line_size(self.length), 1), np.uint8),
            "tokens": np.zeros((count, self.length), np.int32),
        }

    def load(self, indices: np.ndarray, u: np.ndarray) -> Batch:
        """Rows `indices`, int64 [B]; nothing about them is random."""
        del u
        batch = self.blank(len(indices))
        for row, index in enumerate(indices):
            count, *words = map(
                int, random_words(self.split, _STREAM, int(index), 1 + 3 * self.length)
            )
            x = 0
            for i in range(1 + count % self.length):
                which, gap, y = words[3 * i : 3 * i + 3]
                which %= len(self._labels)
                digit = self._digits[which]
                x, y = x + gap % (LARGEST_GAP + 1), y % (HEIGHT - len(digit) + 1)
                size = len(digit)
                batch["image"][row, y : y + size, x : x + size] = digit
                batch["tokens"][row, i] = self._labels[which] + 1
                x += size
        return batch


def open_lines(name: str, split: str, length: int = 8, **where: Any) -> DigitLines:
    """Open one split of a set of lines of text.

    Args:
      name: "digit_lines".  split: "train" or "test".
      length: digits of the longest line, at least 1.
      **where: `data_dir` of `data.open_images`.

    Raises:
      UserError: unknown name or split, a length that is too small.

    Example:
      >>> from normjax import data
      >>> source = data.open_lines("digit_lines", "test", length=2)
      >>> source.length, len(source)
      (2, 1000)
    """
    check_made("set of lines", name, split, DigitLines, _SPLITS)
    if length < 1:
        raise UserError(f"data.length={length} must be at least 1")
    return DigitLines(split, length, **where)
