"""The fields of a run's config: what each meant before it was there, who may change it.

One row a field, so that a new one comes with both. What stands in `config.model` is
declared by the class that it names (see `components`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field.

    Attributes:
      absent: what a run did whose config has no such field. Not always what new runs do
        by default.
      resume: whether a run may go on with another value, as it changes nothing in what
        is learned.
      read: whether commands that read a run (eval, export, ...) may set it for
        themselves.
    """

    absent: Any
    resume: bool = False
    read: bool = False


def _start(absent: Any) -> Field:
    """Of one start of a run: how often it looks, saves and says something."""
    return Field(absent, resume=True)


def _machine(absent: Any) -> Field:
    """Of the machine: where data lie, what computes."""
    return Field(absent, resume=True, read=True)


FIELDS: Mapping[str, Field] = {
    "task": Field("image_classification"),
    "seed": Field(0),
    "batch_size": Field(128, read=True),
    "total_steps": Field(1000),
    "microbatches": Field(1),
    "dtype": Field("float32"),
    "ema_decay": Field(0.0),
    "auxiliary_loss_weight": Field(0.0),
    "nonfinite.policy": _start("stop"),
    "nonfinite.limit": _start(0),
    "recalibrate_batches": Field(0),
    "mesh.data": _machine(-1),
    "mesh.fsdp": _machine(1),
    "mesh.tensor": _machine(1),
    "sharding.embed": _machine("fsdp"),
    "sharding.mlp": _machine("tensor"),
    "sharding.heads": _machine("tensor"),
    "sharding.vocab": _machine("tensor"),
    "parallelism": Field("jit"),
    "sync_batch_stats": Field(True),
    "data.name": Field(""),
    "data.path": _machine(""),
    "data.data_dir": _machine(""),
    "data.train_split": Field("train"),
    "data.eval_split": Field("test"),
    "data.test_split": _start(""),
    "data.workers": _machine(0),
    "reparam": Field(()),
    "optim.name": Field("adamw"),
    "optim.lr": Field(1e-3),
    "optim.warmup_fraction": Field(0.05),
    "optim.final_lr_fraction": Field(0.0),
    "optim.weight_decay": Field(0.05),
    "optim.beta1": Field(0.9),
    "optim.beta2": Field(0.999),
    "optim.clip_norm": Field(1.0),
    "optim.adaptive_clip": Field(0.0),
    "optim.project_weights": Field(False),
    "optim.trainable": Field(".*"),
    "log_every": _start(50),
    "profile_steps": _start(0),
    "diagnostics_every": _start(0),
    "eval_every": _start(500),
    "checkpoint.every": _start(500),
    "checkpoint.keep_last": _start(2),
    "checkpoint.keep_best": _start(1),
}
"""Those of all runs, by dotted name."""

OF_TASK: Mapping[str, Mapping[str, Field]] = {
    "image_classification": {
        # A run that stops at an image may go on without it.
        "data.undecodable": _machine("stop"),
        "data.mean": Field((0.5,)),
        "data.std": Field((0.5,)),
        "data.label_smoothing": Field(0.0),
        "data.mixup_alpha": Field(0.0),
        "data.cutmix_alpha": Field(0.0),
        "data.erase_probability": Field(0.0),
        "data.repeats": Field(1),
        "data.augment.image_size": Field(0),
        "data.augment.eval_resize": Field(0),
        "data.augment.resized_crop_min_scale": Field(0.0),
        "data.augment.crop_padding": Field(0),
        "data.augment.crop_fill": Field("zero"),
        "data.augment.flip": Field(False),
        "data.augment.rand_augment_ops": Field(0),
        "data.augment.rand_augment_set": Field("paper"),
        "data.augment.rand_augment_magnitude": Field(9.0),
        "data.augment.rand_augment_std": Field(0.0),
    },
    "language_modeling": {
        "z_loss_weight": Field(0.0),
        "data.text.length": Field(128),
        "data.text.layout": Field("packed"),
        # Of the same tokens: those of each split are compared with the run's.
        "data.text.tokenizer": _machine("bytes"),
        "data.text.train_path": _machine(""),
        "data.text.validation_path": _machine(""),
        "data.text.test_path": _machine(""),
    },
    "transduction": {"data.length": Field(16)},
}
"""Those of the runs of one task besides."""

OF_MODEL: Mapping[str, Field] = {"model.remat": _start(False)}
"""Those in `config.model` that a resumed run may change."""


def fields_of(task: str) -> dict[str, Field]:
    """Every field of a run but those that only its model has."""
    return {**FIELDS, **OF_TASK.get(task, {})}


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """`config` of a run with what its absent fields meant; `config` stays as it is."""
    task = config.get("task", FIELDS["task"].absent)
    return _filled(config, {name: f.absent for name, f in fields_of(task).items()})


def _filled(given: Mapping[str, Any], absent: Mapping[str, Any]) -> dict[str, Any]:
    whole, below = dict(given), {}
    for name, value in absent.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = value
        else:
            whole.setdefault(first, value)
    for name, values in below.items():
        node = whole.get(name, {})
        if isinstance(node, Mapping):
            whole[name] = _filled(node, values)
    return whole
