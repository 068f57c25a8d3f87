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
  names; sections of `config.data` stand in data_sections.py.

Fields of `config.model` are arguments of the class that it names (see `components`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normjax.config.data_sections import (
    ContrastData,
    Data,
    GraphData,
    ImageData,
    LineData,
    PairData,
    TextData,
)
from normjax.config.declare import Field, machine, run, start
from normjax.core.ranges import ABOVE_ZERO, BELOW_ONE, COUNT, FRACTION, POSITIVE, Range


@dataclass(frozen=True)
class Nonfinite:
    """What a loss or gradient that is not finite leads to; see docs/reliability.md."""

    policy: str = start(
        "stop", "stop, skip the update or roll back", ("stop", "skip", "roll_back")
    )
    limit: int = start(10, "so many times at most", COUNT, absent=0)


@dataclass(frozen=True)
class BatchGrowth:
    """Batches that grow where single gradients differ too much; see docs/train.md."""

    test: str = run(
        "",
        "of the rows that a batch needs; empty: none",
        ("", "norm", "inner_product", "augmented"),
    )
    tolerance: float = run(0.1, "largest relative error of the gradient", ABOVE_ZERO)
    every: int = run(10, "updates from one test to the next", POSITIVE)
    largest: int = run(0, "rows that a batch may grow to", COUNT)
    rate: str = run(
        "constant",
        "the learning rate, by the rows of a batch",
        ("constant", "square_root", "linear"),
    )


@dataclass(frozen=True)
class Distill:
    """A teacher beside the labels; see docs/methods.md."""

    path: str = run("", "its run; empty: none")
    records: str = run(
        "", "in place of it, what it answered (`normjax.distill`); empty: none"
    )
    weight: float = run(0.5, "of the teacher; the labels have the rest", FRACTION)
    temperature: float = run(1.0, "of both", ABOVE_ZERO)
    largest: int = run(
        0, "probabilities of the teacher that are told apart; 0: all", COUNT
    )
    features: str = run(
        "",
        "layers that are to look where the teacher's do: a regular expression of whole "
        "paths; empty: none",
    )
    teacher_features: str = run("", "those of the teacher; empty: of the same paths")
    feature_weight: float = run(1000.0, "of their difference", COUNT)


@dataclass(frozen=True)
class SelfDistill:
    """The model's own predictions of the last epoch (PS-KD); see docs/methods.md."""

    weight: float = run(
        0.0, "of them in the last epoch, 0.8 in the paper; 0: none", FRACTION
    )


@dataclass(frozen=True)
class Adversarial:
    """Adversarial examples beside the clean ones (ConAdv); see docs/methods.md."""

    epsilon: float = run(
        0.0, "largest change of a normalised pixel; 0: no such examples", COUNT
    )
    step: float = run(0.0, "of the attack; 0: epsilon", COUNT)
    targeted: bool = run(True, "at a random other class, not away from the true one")
    noise: float = run(
        0.8, "of the batches are attacked from near an image, not from it", FRACTION
    )


@dataclass(frozen=True)
class Mesh:
    """Devices by axis; see docs/scaling.md."""

    data: int = machine(-1, "copies of the model", "at least 1; -1: the rest")
    fsdp: int = machine(1, "parts of parameters", "at least 1; -1: the rest")
    tensor: int = machine(1, "parts of the computation", "at least 1; -1: the rest")
    stage: int = machine(1, "parts of the layers", "at least 1; -1: the rest")


_AXIS = "an axis of the mesh; empty: whole"


@dataclass(frozen=True)
class Sharding:
    """The axis of the mesh that splits a logical axis; see docs/scaling.md."""

    embed: str = machine("fsdp", "features between layers", _AXIS)
    mlp: str = machine("tensor", "features within an MLP", _AXIS)
    heads: str = machine("tensor", "heads of a mixer", _AXIS)
    vocab: str = machine("tensor", "tokens and classes", _AXIS)
    expert: str = machine("", "experts of a mixture", _AXIS)


@dataclass(frozen=True)
class Model:
    """A preset or class of `normjax.models` by its `name`, with arguments of its own.

    `norm`, `mixer`, `activation`, `stem`, ... are components: a key, or a `name` with
    arguments. Every argument can be set, whether or not the config says it already;
    `mixer[0].core` is that of the first stage, `mixer[*].core` that of all mixers with
    such an argument.
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
    "model.remat": Field(
        False,
        "activations are computed twice",
        "True, False or a key of `normjax.models.REMAT_POLICIES`",
        resume=True,
    ),
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
    sam_rho: float = run(
        0.0, "distance of sharpness-aware minimization; 0: none", COUNT
    )
    mup_base_width: int = run(
        0, "dim (or dims[0]) that rates and initial values are of; 0: any", COUNT
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
    total_steps: int = run(
        1000, "updates of the parameters; more extend a run", POSITIVE
    )
    fractions_of: int = run(
        0, "updates that fractions of the run are of; 0: total_steps", COUNT
    )
    microbatches: int = run(
        1, "parts of a batch whose gradients are averaged", POSITIVE
    )
    deferred_batch_stats: bool = run(
        False, "with microbatches: running statistics of the whole batch, not of each"
    )
    batch_growth: BatchGrowth = BatchGrowth()
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
    penalties: tuple[dict[str, Any], ...] = run(
        (), "terms of the loss, by the path of a layer", "rules of `PENALTIES`"
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
    distill: Distill = Distill()
    self_distill: SelfDistill = SelfDistill()
    adversarial: Adversarial = Adversarial()
    optim: Optim = Optim()
    log_every: int = start(50, "steps from one line to the next", POSITIVE)
    wandb: str = start(
        "", "project of Weights & Biases that gets the scalars; empty: none"
    )
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


@dataclass(frozen=True)
class MaskedRun(Run):
    """Of masked_language_modeling."""

    data: TextData = TextData()
    mask_rate: float = run(0.15, "of the tokens are to be found", FRACTION)
    mask_token: int = run(-1, "number of what hides them; -1: a new one", "at least -1")


@dataclass(frozen=True)
class LineRun(Run):
    """Of line_recognition."""

    data: LineData = LineData()


@dataclass(frozen=True)
class ContrastRun(Run):
    """Of contrastive_pairs."""

    data: ContrastData = ContrastData()


@dataclass(frozen=True)
class NodeRun(Run):
    """Of node_classification."""

    data: GraphData = GraphData()


RUNS: Mapping[str, type[Run]] = {
    "image_classification": ImageRun,
    "language_modeling": LanguageRun,
    "masked_language_modeling": MaskedRun,
    "line_recognition": LineRun,
    "contrastive_pairs": ContrastRun,
    "node_classification": NodeRun,
    "transduction": TransductionRun,
}
"""What the runs of a task have."""

OPEN = (Model, Optim)
"""Sections that also hold arguments of a class, which knows their names."""
