"""Whether a model keeps the output layer of what it begins with."""

import re
from typing import NamedTuple

import numpy as np

from normjax.core.errors import UserError
from normjax.transfer.source import Source
from normjax.transfer.wanted import Wanted, name_of

HEAD = re.compile(r"head(_dist)?/(kernel|bias)")
"""Its arrays."""
FOREIGN = re.compile(r"(.*\.)?(heads?|fc|classifier)(_dist)?\.(.*\.)?(weight|bias)")
"""Names that other files give it."""


class Head(NamedTuple):
    """Attributes:
    why_new: why it is initialised anew; "" if the source's is kept.
    picks: of which of its classes, in order; None: of all.
    """

    why_new: str = ""
    picks: tuple[int, ...] | None = None

    def of(self, array: np.ndarray) -> np.ndarray:
        """The columns of the source's array that are kept."""
        return array if self.picks is None else array[..., list(self.picks)]


def head_of(source: Source, wanted: Wanted) -> Head:
    """What `config.init.head` means here.

    "auto" keeps it where there are as many classes, of the same names as far as both
    are known; "keep" also takes the columns of the model's classes by their names.

    Raises:
      UserError: "keep", where classes cannot be found.
    """
    if wanted.head == "new":
        return Head("a new head")
    paths = [path for path in wanted.shapes if HEAD.fullmatch(name_of(path))]
    theirs = next((source.arrays[p].shape[-1] for p in paths if p in source.arrays), 0)
    ours = next((wanted.shapes[path][-1] for path in paths), 0)
    there, here = tuple(source.class_names), tuple(wanted.class_names)
    named = bool(there and here)
    if theirs and theirs == ours and (not named or there == here):
        return Head()
    if wanted.head == "keep" and ours:
        return Head(picks=_picked(source, theirs, ours, there, here))
    if not theirs:
        return Head("the source has none")
    if theirs != ours:
        return Head(f"{theirs:,} classes there, {ours:,} here")
    return Head("classes of other names")


def _picked(source, theirs, ours, there, here) -> tuple[int, ...]:
    what = f"config.init.head='keep': {source.title} has"
    if not theirs:
        raise UserError(f"{what} none")
    if not (there and here):
        raise UserError(f"{what} {theirs:,} classes without names, the data {ours:,}")
    lacks = [name for name in here if name not in there]
    if lacks:
        raise UserError(f"{what} no class {lacks[0]!r}, of {len(lacks)} that it lacks")
    return tuple(there.index(name) for name in here)
