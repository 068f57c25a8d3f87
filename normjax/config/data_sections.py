"""The fields of `config.data`, by what is read; the rules are those of `sections`."""

from dataclasses import dataclass

from normjax.config.declare import machine, run, start
from normjax.core.ranges import BELOW_ONE, COUNT, FRACTION, POSITIVE, Range


@dataclass(frozen=True)
class Data:
    """What is read; see docs/data.md."""

    name: str = run("", "the data set", "one of the task's own, or a set of TFDS")
    path: str = machine("", "of people's own sets: a file, folder, zip or tar")
    data_dir: str = machine("", "of prepared sets; empty: the user's cache")
    train_split: str = run("train", "trained on")
    eval_split: str = run(
        "", "evaluated every eval_every steps and at the end", absent="test"
    )
    test_split: str = start("", "evaluated at the end; empty: none")
    workers: int = machine(
        0, "processes that read and augment; 0: threads of this one", Range(0, 512)
    )


@dataclass(frozen=True)
class Augment:
    """Augmentation of images; see `normjax.data.augment`."""

    image_size: int = run(0, "side of the square; 0: as images are", "at least 0")
    eval_resize: int = run(
        0,
        "short side before the central crop of evaluation; 0: image_size",
        "0, or at least image_size",
    )
    interpolation: str = run("bicubic", "of resizing", ("bicubic", "bilinear"))
    resized_crop_min_scale: float = run(
        0.0, "smallest area of a random resized crop; 0: none", "in [0, 1]"
    )
    crop_padding: int = run(
        0, "pixels around an image before it is cropped at random", "at least 0"
    )
    crop_fill: str = run("zero", "what is padded", "zero or reflect")
    flip: bool = run(False, "left and right, with probability 1/2")
    rand_augment_ops: int = run(
        0, "operations of RandAugment on an image; 0: none", "at least 0"
    )
    rand_augment_set: str = run(
        "paper", "the published operations, or those of timm", "paper or increasing"
    )
    rand_augment_magnitude: float = run(9.0, "their strength", "in [0, 30]")
    rand_augment_std: float = run(0.0, "its standard deviation", "in [0, 30]")


@dataclass(frozen=True)
class ImageData(Data):
    """What is read, and augmented; see docs/data.md."""

    # A run that stops at an image may go on without it.
    undecodable: str = machine(
        "stop", "an image that cannot be decoded: stop, or skip it", "stop or skip"
    )
    in_place: bool = run(
        False, "images are read where they lie, not copied into data_dir"
    )
    classes: str = run(
        "", "file of class names, a line each, in the order of the logits", "a file"
    )
    held_out: float = run(
        0.1,
        "of each class, as the split test, where path has no splits",
        BELOW_ONE,
    )
    label_field: str = run("", "column of the labels of an hf_dataset", "empty: found")
    mean: tuple[float, ...] = run(
        (0.5,), "of the pixels scaled to 0..1", "one number, or one a channel"
    )
    std: tuple[float, ...] = run(
        (0.5,), "of the pixels scaled to 0..1", "one number, or one a channel"
    )
    label_smoothing: float = run(0.0, "of the targets", FRACTION)
    mixup_alpha: float = run(0.0, "of mixup's beta distribution; 0: none", COUNT)
    cutmix_alpha: float = run(0.0, "of CutMix's beta distribution; 0: none", COUNT)
    erase_probability: float = run(0.0, "of random erasing", FRACTION)
    repeats: int = run(1, "augmented copies of an image, one after the other", POSITIVE)
    augment: Augment = Augment()


@dataclass(frozen=True)
class Text:
    """Rows of tokens; see `normjax.data.text`."""

    length: int = run(128, "tokens of a row", "at least 1")
    layout: str = run(
        "packed", "documents one after the other, or one a row", "packed or padded"
    )
    # Of the same tokens: those of each split are compared with the run's.
    tokenizer: str = machine(
        "bytes", "bytes, or the file of a trained one", "bytes, or a .json or .model"
    )
    field: str = run(
        "text", "of JSON lines, Parquet and hf_dataset: what holds a document"
    )
    train_path: str = machine("", "of a text_file, instead of data.path")
    validation_path: str = machine("", "of a text_file, instead of data.path")
    test_path: str = machine("", "of a text_file, instead of data.path")


@dataclass(frozen=True)
class TextData(Data):
    """What is read; see docs/data.md."""

    text: Text = Text()


@dataclass(frozen=True)
class PairData(Data):
    """What is made; see docs/data.md."""

    length: int = run(16, "letters of the longest source", "at least 4")


@dataclass(frozen=True)
class LineData(Data):
    """What is made; see docs/data.md."""

    length: int = run(8, "digits of the longest line", POSITIVE)


@dataclass(frozen=True)
class ContrastData(LineData):
    """What is made, and what retrieval is normalised by; see docs/data.md."""

    bank: int = start(1000, "pairs of both banks, in whole batches; 0: none", COUNT)
    bank_split: str = start("train", "whose first pairs they are")


@dataclass(frozen=True)
class GraphData(Data):
    """What is made; see docs/data.md."""

    communities: int = run(6, "of a graph", "at least 2")
    smallest: int = run(5, "nodes of the smallest community", POSITIVE)
    largest: int = run(35, "nodes of the largest", "at least smallest")
    positions: int = run(10, "of a node, by the Laplacian", COUNT)
