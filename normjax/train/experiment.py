"""From a config to the objects of a run; training and evaluation share it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from normjax import models, norms, optim, reparam
from normjax.core.errors import UserError
from normjax.tasks import TASKS, Task
from normjax.train.config import require, resolve_fractions
from normjax.train.evaluate import evaluate
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
      config: as given.  task: with its data.
      model, optimizer, schedule, recipe: of the step.  mesh: the devices.
    """

    config: Any
    task: Task
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    recipe: Recipe
    mesh: Mesh

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
        row = {k: jnp.zeros((1, *s.shape), s.dtype) for k, s in self.task.row().items()}
        return create_state(
            self.model,
            self.optimizer,
            self.config.seed,
            self.task.objective.inputs(row),
            use_ema=self.config.ema_decay > 0,
        )

    def train_batches(self, start_step: int = 0):
        """Endless training batches from `start_step` on, on the devices."""
        batches = self.task.train_batches(
            seed=self.config.seed, start_step=start_step, **self._share()
        )
        return to_devices(batches, self.mesh)

    def eval_batches(self, split: str):
        """One pass over `split` in order, padded and masked, on the devices."""
        return to_devices(self.task.eval_batches(split, **self._share()), self.mesh)

    def evaluate(self, eval_step: Any, variables: Any, split: str) -> dict[str, float]:
        """Scores of `variables` over `split`."""
        sums = evaluate(eval_step, variables, self.eval_batches(split))
        return self.task.summarize(sums, split)

    def _share(self) -> dict[str, int]:
        return {
            "batch_size": self.config.batch_size,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


def build_experiment(config: Any) -> Experiment:
    """Check `config` and build what it describes.

    Raises:
      UserError: a name, value or combination that is not allowed.
    """
    _check_numbers(config)
    mesh = make_mesh(config.batch_size, config.microbatches)
    task = TASKS[config.task].make(config)
    model = build_model(config, **task.model_arguments())
    recipe = Recipe(
        microbatches=config.microbatches,
        ema_decay=config.ema_decay,
        auxiliary_loss_weight=config.auxiliary_loss_weight,
    )
    return Experiment(
        config=config,
        task=task,
        model=model,
        optimizer=optim.build(config.optim, config.total_steps),
        schedule=optim.learning_rate(config.optim, config.total_steps),
        recipe=recipe,
        mesh=mesh,
    )


def build_model(config: Any, **arguments: Any) -> nn.Module:
    """The model of `config.model`; fractions of the run become steps.

    Args:
      **arguments: of the model, which the data fix.
    """
    spec: dict[str, Any] = config.model.to_dict()
    spec["norm"] = resolve_fractions(norms.NORMS, spec["norm"], config.total_steps)
    dtype = DTYPES[require(config, "dtype", tuple(DTYPES))]
    model = models.build(spec, **arguments, dtype=dtype)
    return reparam.reparameterize(model, config.to_dict().get("reparam"))


def _check_numbers(config: Any) -> None:
    for field in COUNTS:
        *section, name = field.split(".")
        value = (config[section[0]] if section else config)[name]
        if value < 1:
            raise UserError(f"config.{field} must be at least 1, got {value}")
