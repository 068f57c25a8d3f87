"""From a config to the objects of a run; training and evaluation share it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from normjax import data, models, norms, optim
from normjax.core.errors import UserError
from normjax.train.config import require, resolve_fractions
from normjax.train.mesh import make_mesh, replicated, to_devices
from normjax.train.state import TrainState, create_state
from normjax.train.step import Recipe

COUNTS = (
    "batch_size",
    "total_steps",
    "microbatches",
    "log_every",
    "eval_every",
    "checkpoint.every",
    "checkpoint.keep_last",
)
"""Fields that must be at least 1."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a config determines.

    Attributes:
      config: as given.  model, optimizer, schedule, recipe: of the step.
      mesh: the devices.
      sources: splits of the data set that are open, by name.
      image_shape: (H, W, C) that the model sees.
    """

    config: Any
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    recipe: Recipe
    mesh: Mesh
    sources: dict[str, data.ImageSource]
    image_shape: tuple[int, int, int]

    def create_state(self) -> TrainState:
        """The state before the first step, replicated over the mesh."""
        # It runs once: unoptimised code is as good, and compiles ten times faster.
        create = jax.jit(
            self._create,
            out_shardings=replicated(self.mesh),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return create()

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state."""
        return jax.eval_shape(self._create)

    def _create(self) -> TrainState:
        return create_state(
            self.model,
            self.optimizer,
            self.config.seed,
            (1, *self.image_shape),
            use_ema=self.config.ema_decay > 0,
        )

    def train_batches(self, start_step: int = 0):
        """Endless training batches from `start_step` on, on the devices."""
        batches = data.train_batches(
            self.source(self.config.data.train_split),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            augment=data.augment.build(self.config.data.augment, train=True),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.data.workers,
        )
        return to_devices(batches, self.mesh)

    def source(self, split: str) -> data.ImageSource:
        """One split of the data set, opened once and kept with its decoded images."""
        if split not in self.sources:
            self.sources[split] = open_split(self.config, split)
        return self.sources[split]

    def eval_batches(self, split: str):
        """One pass over `split` in order, padded and masked, on the devices."""
        batches = data.eval_batches(
            self.source(split),
            batch_size=self.config.batch_size,
            transform=data.augment.build(self.config.data.augment, train=False),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return to_devices(batches, self.mesh)


def build_experiment(config: Any) -> Experiment:
    """Check `config` and build what it describes.

    Raises:
      UserError: a name, value or combination that is not allowed.
    """
    _check_numbers(config)
    mesh = make_mesh(config.batch_size, config.microbatches)
    # Both at once: a wrong name must not wait for its use.
    splits = (config.data.train_split, config.data.eval_split)
    sources = {split: open_split(config, split) for split in splits}
    source = sources[config.data.train_split]
    transform = data.augment.build(config.data.augment, train=True)
    _check_channels(config, source.channels)
    model = build_model(config, source.num_classes)
    recipe = Recipe(
        num_classes=source.num_classes,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        label_smoothing=config.data.label_smoothing,
        mixup_alpha=config.data.mixup_alpha,
        cutmix_alpha=config.data.cutmix_alpha,
        microbatches=config.microbatches,
        ema_decay=config.ema_decay,
        auxiliary_loss_weight=config.auxiliary_loss_weight,
    )
    return Experiment(
        config=config,
        model=model,
        optimizer=optim.build(config.optim, config.total_steps),
        schedule=optim.learning_rate(config.optim, config.total_steps),
        recipe=recipe,
        mesh=mesh,
        sources=sources,
        image_shape=data.image_shape(source, transform),
    )


def open_split(config: Any, split: str) -> data.ImageSource:
    """One split of the config's data set."""
    return data.open_images(
        config.data.name,
        split,
        data_dir=config.data.data_dir or None,
        path=config.data.path or None,
    )


def build_model(config: Any, num_classes: int) -> nn.Module:
    """The model of `config.model`; fractions of the run become steps."""
    spec: dict[str, Any] = config.model.to_dict()
    spec["norm"] = resolve_fractions(norms.NORMS, spec["norm"], config.total_steps)
    dtype = DTYPES[require(config, "dtype", tuple(DTYPES))]
    return models.build(spec, num_classes=num_classes, dtype=dtype)


def _check_numbers(config: Any) -> None:
    for field in COUNTS:
        *section, name = field.split(".")
        value = (config[section[0]] if section else config)[name]
        if value < 1:
            raise UserError(f"config.{field} must be at least 1, got {value}")


def _check_channels(config: Any, channels: int) -> None:
    for field in ("mean", "std"):
        value = config.data[field]
        numbers = all(isinstance(v, int | float) for v in value)
        if len(value) not in (1, channels) or not numbers:
            raise UserError(
                f"config.data.{field} must be 1 or {channels} numbers, got {value}"
            )
