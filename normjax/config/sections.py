"""Every field of a run's config, each declared here and nowhere else.

**A new field** is one line in the dataclass of its section below. From it follow the
configs that recipes begin with (`configs/common.py`), the checks of its values, whether
a run may go on with another one, what older runs meant that lack it, and its row in
docs/config.md, which `python -m normjax.config > docs/config.md` writes anew.

- `run`, `start` or `machine` (see `declare`) says whether it is part of what is
  learned, of one start of a run, or of the machine.
- A default that changes what runs do needs `absent=`: what those did that were begun
  before the field was there, and go on.
- What only the runs of one task have stands in a section of that task, which `RUNS`
  names.

Fields of `config.model` are arguments of the class that it names (see `components`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normjax.config.declare import (
    Field,
    machine,
    run,
    start,
)
from normjax.core.ranges import BELOW_ONE, COUNT, FRACTION, POSITIVE, Range


@dataclass(frozen=True)
class Nonfinite:
    """What a loss or gradient that is not finite leads to; see docs/reliability.md."""

    policy: str = start(
        "stop", "stop, skip the update or roll back", ("stop", "skip", "roll_back")
    )
    limit: int = start(10, "so many times at most", COUNT, absent=0)


@dataclass(frozen=True)
class Mesh:
    """Devices by axis; see docs/scaling.md."""

    data: int = machine(-1, "copies of the model", "at least 1; -1: the rest")
    fsdp: int = machine(1, "parts of parameters", "at least 1; -1: the rest")
    tensor: int = machine(1, "parts of the computation", "at least 1; -1: the rest")


_AXIS = "an axis of the mesh; empty: whole"


@dataclass(frozen=True)
class Sharding:
    """The axis of the mesh that splits a logical axis; see docs/scaling.md."""

    embed: str = machine("fsdp", "features between layers", _AXIS)
    mlp: str = machine("tensor", "features within an MLP", _AXIS)
    heads: str = machine("tensor", "heads of a mixer", _AXIS)
    vocab: str = machine("tensor", "tokens and classes", _AXIS)


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
class Model:
    """A preset or class of `normjax.models` by its `name`, with arguments of its own.

    `norm`, `mixer`, `activation`, `stem`, ... are components: a key, or a `name` with
    arguments. Every argument can be set, whether or not the config says it already.
    Only `remat` may be another when a run goes on.
    """


@dataclass(frozen=True)
class Init:
    """Weights that a run begins with; see docs/finetune.md. They are read once."""

    path: str = run("", "a run, or a file or folder of published weights; empty: none")
    include: str = run(".*", "arrays that are taken", "a regular expression of paths")
    exclude: str = run(
        "", "arrays that are not; empty: none", "a regular expression of paths"
    )
    head: str = run(
        "auto",
        "auto: kept if the classes are the same; keep: or chosen by their names",
        ("auto", "new", "keep"),
    )
    ema: str = run(
        "auto",
        "which weights; auto: those that a run is evaluated with, a file's plain ones",
        ("auto", "averaged", "raw"),
    )
    schedule: str = run(
        "continue",
        "of progressive norms (prepbn): as far as it was, or from the start, or over",
        ("continue", "restart", "ended"),
    )


MODEL: Mapping[str, Field] = {
    "model.remat": Field(False, "activations are computed twice", resume=True),
    "model.depth": Field(None, "layers", Range(1, 10_000)),
}
"""What runs know of the arguments of models, which have their defaults."""


@dataclass(frozen=True)
class Optim:
    """The optimizer, its schedule and which parameters take part; see docs/optim.md.

    Every argument of the two can be set, whether or not it stands here.
    """

    name: str = run("adamw", "the optimizer", "a key of `normjax.optim.OPTIMIZERS`")
    lr: float = run(1e-3, "the largest learning rate", COUNT)
    warmup_fraction: float = run(0.05, "of the run: rising to lr", BELOW_ONE)
    final_lr_fraction: float = run(0.0, "of lr: where its cosine ends", COUNT)
    weight_decay: float = run(0.05, "of matrices and larger arrays", COUNT)
    beta1: float = run(0.9, "decay of the first moment; momentum of sgd", BELOW_ONE)
    beta2: float = run(0.999, "decay of the second moment; sgd has none", BELOW_ONE)
    schedule: str = run(
        "cosine", "of the learning rate", "a key of `normjax.optim.SCHEDULES`"
    )
    clip_norm: float = run(1.0, "largest norm of all gradients; 0: no clipping", COUNT)
    adaptive_clip: float = run(
        0.0, "largest ratio of gradients to weights; 0: no clipping", COUNT
    )
    project_weights: bool = run(
        False, "weights back to their initial norm after every update"
    )
    transformations: tuple[Any, ...] = run(
        (), "of gradients or updates", "specs of `normjax.optim.TRANSFORMATIONS`"
    )
    groups: tuple[dict[str, Any], ...] = run(
        (), "parameters that are updated otherwise", "rules of `normjax.optim.Group`"
    )
    trainable: str = run(
        ".*", "parameters that are trained, by their path", "a regular expression"
    )
    frozen_statistics: bool = run(
        False, "norms of which no parameter is trained keep their batch statistics"
    )


@dataclass(frozen=True)
class Checkpoint:
    """What is saved; see docs/reliability.md."""

    every: int = start(500, "steps from one to the next", POSITIVE)
    keep_last: int = start(2, "the newest ones", POSITIVE)
    keep_best: int = start(1, "those of the best scores", COUNT)
    best_by: str = start("", "the score that counts; empty: the task's own")


@dataclass(frozen=True)
class Run:
    """What every run has."""

    task: str = run(
        "", "what is learned", "a key of `TASKS`", absent="image_classification"
    )
    seed: int = run(0, "of parameters, order and augmentation")
    batch_size: int = run(128, "rows of a batch, of all devices", POSITIVE, read=True)
    total_steps: int = run(1000, "updates of the parameters", POSITIVE)
    microbatches: int = run(
        1, "parts of a batch whose gradients are averaged", POSITIVE
    )
    dtype: str = run(
        "auto",
        "of the computation; auto: bfloat16 on accelerators",
        ("auto", "float32", "bfloat16"),
        absent="float32",
    )
    ema_decay: float = run(
        0.0, "of an average of the parameters; 0: no average", BELOW_ONE
    )
    auxiliary_loss_weight: float = run(
        1.0, "of what layers add to the loss", absent=0.0
    )
    nonfinite: Nonfinite = Nonfinite()
    recalibrate_batches: int = run(
        0, "to re-estimate batch statistics from, at the end", COUNT
    )
    mesh: Mesh = Mesh()
    sharding: Sharding = Sharding()
    parallelism: str = run(
        "jit", "one program of all devices, or one a device", ("jit", "pmap")
    )
    sync_batch_stats: bool = run(True, "under pmap: batch statistics of all devices")
    data: Data = Data()
    model: Model = Model()
    init: Init = Init()
    reparam: tuple[dict[str, Any], ...] = run(
        (), "of weights, by the path of a layer", "rules of `normjax.reparam`"
    )
    optim: Optim = Optim()
    log_every: int = start(50, "steps from one line to the next", POSITIVE)
    profile_steps: int = start(0, "that are traced; 0: none", COUNT)
    diagnostics_every: int = start(
        0, "steps from one look into the layers to the next; 0: never", COUNT
    )
    eval_every: int = start(500, "steps from one evaluation to the next", POSITIVE)
    patience: int = start(
        0, "evaluations without a better score after which a run ends; 0: never", COUNT
    )
    checkpoint: Checkpoint = Checkpoint()


@dataclass(frozen=True)
class ImageRun(Run):
    """Of image_classification."""

    data: ImageData = ImageData()


@dataclass(frozen=True)
class LanguageRun(Run):
    """Of language_modeling."""

    data: TextData = TextData()
    z_loss_weight: float = run(0.0, "of the mean of logsumexp(logits)^2", COUNT)


@dataclass(frozen=True)
class TransductionRun(Run):
    """Of transduction."""

    data: PairData = PairData()


RUNS: Mapping[str, type[Run]] = {
    "image_classification": ImageRun,
    "language_modeling": LanguageRun,
    "transduction": TransductionRun,
}
"""What the runs of a task have."""

OPEN = (Model, Optim)
"""Sections that also hold arguments of a class, which knows their names."""
