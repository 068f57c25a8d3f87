"""What a task and its model need to know of data that they do not read."""

from typing import NamedTuple


class Images(NamedTuple):
    """Of an image source; see `data.ImageSource`."""

    name: str
    class_names: tuple[str, ...]
    channels: int
    shape: tuple[int, int, int] | None

    class_counts = None  # not known

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Text(NamedTuple):
    """Of a source of text."""

    vocab_size: int
