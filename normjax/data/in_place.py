"""Images of people's own sets, read where they lie."""

import contextlib
import threading
from collections.abc import Sequence

import numpy as np

from normjax.core.errors import UserError, one_of, printable
from normjax.data.decode import OneRange
from normjax.data.decoded import DecodedImages
from normjax.data.folder import UNREADABLE, Folder, Reader


class FolderSource(DecodedImages):
    """One split of a `Folder`, without a copy of it. Threads may share it; it pickles.

    Nothing is read before it is asked for: files that cannot be decoded are found as
    they come up.

    Args:
      gray: what values of more than eight bits fill in all splits.

    Attributes:
      digest: of the path, and of names, sizes and times of all files.
    """

    def __init__(
        self, folder: Folder, split: str, *, channels: int, skip: bool, gray: OneRange
    ):
        if split not in folder.splits:
            hint = "; slices need config.data.in_place=false" if "[" in split else ""
            known = one_of(f"split of {folder.kind!r}:", split, folder.splits)
            raise UserError(known + hint)
        self.name, self.split, self.skip = folder.kind, split, skip
        self.class_names, self.channels = folder.class_names, channels
        self.shape, self.stand_ins, self.left_out = None, {}, 0
        self.ignored, self.digest = folder.left_out, folder.fingerprint
        self._reader, self._range = folder.reader, gray
        pairs = folder.splits[split]
        self._files = [name for name, _ in pairs]
        self._labels = np.array([label for _, label in pairs], np.int64)
        self.num_examples = len(pairs)
        self.class_counts = np.bincount(self._labels, minlength=self.num_classes)
        self._close()

    def _close(self) -> None:
        self._stack, self._lock = contextlib.ExitStack(), threading.Lock()
        self._opened: Reader | None = None

    def __getstate__(self):
        own = ("_stack", "_lock", "_opened")
        return {key: value for key, value in vars(self).items() if key not in own}

    def __setstate__(self, state):
        vars(self).update(state)
        self._close()

    def name_of(self, index: int) -> str:
        return f"{printable(self._files[index])} of {self.name!r} split {self.split!r}"

    def _read(self, indices: Sequence[int] | np.ndarray) -> list[tuple[bytes, int]]:
        with self._lock:
            if self._opened is None:
                self._opened = self._stack.enter_context(self._reader())
        found = []
        for index in map(int, indices):
            try:
                encoded = self._opened(self._files[index])
            except UNREADABLE as error:
                where = f"cannot read {self.name_of(index)}"
                raise UserError(f"{where} ({error})") from None
            found.append((encoded, int(self._labels[index])))
        return found
