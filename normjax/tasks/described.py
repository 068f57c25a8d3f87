"""What a task and its model need to know of data that they do not read."""

from typing import NamedTuple


class Images(NamedTuple):
    """Of an image source; see `data.ImageSource`.

    The names of the classes are not known where converted weights begin a run.
    """

    name: str
    num_classes: int
    channels: int
    shape: tuple[int, int, int] | None
    class_names: tuple[str, ...] = ()

    class_counts = None  # not known


class Text(NamedTuple):
    """Of a source of text."""

    vocab_size: int
