"""Sets whose examples are made, not stored: pure functions of (split, number)."""

from collections.abc import Sequence

import numpy as np

from normjax.core.errors import UserError, one_of
from normjax.data.augment import Transform
from normjax.data.corpus import SPLITS


class Made:
    """A split of a set whose rows are made when they are asked for.

    Attributes:
      name: of the set.  kind: what it is made of, in plural.  split: its split.
      num_examples: of the split.
    """

    name: str
    kind: str
    num_uniforms, digest = 0, "1"  # nothing can change

    def __init__(self, split: str, num_examples: int):
        self.split, self.num_examples = split, num_examples

    def __len__(self) -> int:
        return self.num_examples

    def rows(self, transform: Transform | None = None):
        """Itself: it makes its rows.

        Raises:
          UserError: a `transform`, which is for photographs.
        """
        if transform is not None:
            raise UserError(f"augment is for images; {self.name!r} is {self.kind}")
        return self


def check_made(
    what: str, name: str, split: str, made: type[Made], splits: Sequence[str] = SPLITS
) -> None:
    """Raise UserError if there is no such set, or no such split of it."""
    if name != made.name:
        raise UserError(one_of(what, name, (made.name,)))
    if split not in splits:
        raise UserError(one_of(f"split of {name!r}:", split, splits))


def random_words(split: str, stream: int, index: int, count: int) -> np.ndarray:
    """uint64 [count], those of example `index` of a split.

    Raw words of Philox, which NumPy fixes for good, see `data.order`.

    Args:
      stream: number of the set.
    """
    key = np.array([SPLITS.index(split), stream], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
