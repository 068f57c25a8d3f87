"""From a config to the objects of a run; training and evaluation share it."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from normjax import models, norms, optim, reparam
from normjax.config.check import check_config, require
from normjax.core.collections import PARAMS
from normjax.core.scanned import scanned_of
from normjax.core.schedules import norm_schedule
from normjax.devices.mesh import make_mesh, split_batch, to_devices
from normjax.devices.per_device import check_mesh
from normjax.devices.pipeline import check_stages
from normjax.devices.placed import Placed
from normjax.devices.sharding import rules_of, state_shardings, with_shardings
from normjax.devices.votes import abstract_votes
from normjax.tasks import TASKS, Objective, Task
from normjax.tasks.scores import evaluate
from normjax.train.config import (
    first_total,
    nonfinite_policy,
    optim_of,
    resolve_fractions,
)
from normjax.train.parts import Part, parts_of
from normjax.train.penalties import penalties_of
from normjax.train.rule import Rule
from normjax.train.rules import rule_of
from normjax.train.state import TrainState, create_state, of_model
from normjax.train.step import Recipe
from normjax.train.width import width_of

DTYPES = {"auto": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Of the computation; "auto" is bfloat16 on accelerators and float32 on CPU."""


RATES: dict[str, Callable[[int], float]] = {
    "constant": lambda parts: 1.0,
    "square_root": functools.partial(optim.batch_scaled_rate, 1.0, 1),
    "linear": functools.partial(optim.batch_scaled_rate, 1.0, 1, optimizer="sgd"),
}
"""The learning rate of a batch of so many times the rows, as a multiple."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a config determines.

    Attributes:
      config: as given.  task: with its data.
      model, optimizer, schedule, recipe: of the step.  mesh: the devices.
      rules: how parameters lie on the mesh, see `sharding`.
      at_rate: optimizer and schedule at a multiple of the learning rate.
      begin: what becomes of the parameters that the model makes.
      multiple: batches of `config.batch_size` rows that one is made of, see `grown`.
    """

    config: Any
    task: Task
    model: nn.Module
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    recipe: Recipe
    mesh: Mesh
    rules: dict[str, str]
    at_rate: Callable[[Any], tuple[optax.GradientTransformation, optax.Schedule]]
    begin: Callable[[Any], Any]
    multiple: int = 1

    def grown(self, parts: int) -> "Experiment":
        """The same with batches of so many times the rows, in as many microbatches.

        A microbatch keeps its rows, so that memory and batch statistics are of as many
        as before; the learning rate is what `config.batch_growth.rate` makes of it.
        """
        optimizer, schedule = self.at_rate(RATES[self.config.batch_growth.rate](parts))
        recipe = self.recipe._replace(microbatches=self.config.microbatches * parts)
        return dataclasses.replace(
            self,
            multiple=parts,
            optimizer=optimizer,
            schedule=schedule,
            recipe=recipe,
        )

    @functools.cached_property
    def objective(self) -> Objective:
        """Of training: the task's, with a teacher where the config names one."""
        return self.rule.objective(self.task.objective)

    @functools.cached_property
    def rule(self) -> Rule:
        """What is trained on besides examples and labels."""
        return rule_of(self.config, self.task, build_model)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """How every array of the state lies on the mesh."""
        return state_shardings(self._shapes, self.mesh, self.rules)

    def placed(self) -> Any:
        """The model for programs whose parameters lie as `shardings` says: `apply`."""
        parts = self.recipe.microbatches
        shardings = of_model(self.shardings.params)
        return Placed(self.model, self.mesh, shardings, parts)

    def create_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        # It runs once: unoptimised code is as good, and compiles ten times faster.
        create = jax.jit(
            self._create,
            out_shardings=self.shardings,
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return create()

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return with_shardings(self._shapes, self.shardings)

    def abstract_batch(self, train: bool = True) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch of training or of evaluation."""
        row = self.task.row()
        row |= self.rule.row() if train else {"mask": jax.ShapeDtypeStruct((), bool)}
        rows = self.config.batch_size * (self.multiple if train else 1)
        batch = {
            name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype)
            for name, x in row.items()
        }
        votes = abstract_votes(self.mesh) if train else {}
        return with_shardings({**batch, **votes}, split_batch(self.mesh))

    @property
    def reads_batch(self) -> bool:
        """Whether the rows of a batch meet at evaluation, see `norms.reads_batch`."""
        return self._traced[1]

    @property
    def _shapes(self) -> TrainState:
        return self._traced[0]

    def parts(self) -> list[Part]:
        """What the parts of the model hold, and compute for one example."""
        return parts_of(self._shapes.params, self._traced[2])

    @functools.cached_property
    def _traced(self) -> tuple[TrainState, bool, Any]:
        """Shapes of the state, whether a module reads the batch, and what is computed
        before the first step: the model of one example."""
        found = []

        def ask(call, args, kwargs, context):
            found.append(norms.reads_batch(context.module))
            return call(*args, **kwargs)

        with nn.intercept_methods(ask):
            trace = jax.make_jaxpr(lambda: self._create(), return_shape=True)
            jaxpr, shapes = trace()
        return shapes, any(found), jaxpr.jaxpr

    def _create(self) -> TrainState:
        return create_state(
            self.model,
            self.optimizer,
            self.config.seed,
            self.task.example(),
            use_ema=self.config.ema_decay > 0,
            grows=bool(self.config.batch_growth.test),
            begin=self._begun,
            memory=self.rule.memory,
        )

    def _begun(self, variables: dict[str, Any]) -> dict[str, Any]:
        params = self.begin(variables[PARAMS])
        return self.rule.begin({**variables, PARAMS: params})

    def train_batches(self, start: int = 0):
        """Endless training batches, on the devices.

        Args:
          start: number of the first, among batches of `config.batch_size` rows.
        """
        return to_devices(self._host_batches(start), self.mesh)

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """This process's rows of one training batch, on the host."""
        batches: Any = self._host_batches(number)
        with contextlib.closing(batches):
            return next(batches)

    def _host_batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows; a batch is `multiple` of them, one behind the other."""
        batches: Any = self.task.train_batches(
            seed=self.config.seed, start_step=start, **self._share()
        )
        numbers = itertools.count(start)
        with contextlib.closing(batches):
            while True:
                rows = [
                    self._with_rule(next(numbers), next(batches))
                    for _ in range(self.multiple)
                ]
                yield {name: _joined([r[name] for r in rows]) for name in rows[0]}

    def _with_rule(self, number: int, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with what the rule has of each row, of this process."""
        rows = self.config.batch_size // jax.process_count()
        first = rows * jax.process_index()
        ours = slice(first, first + rows)
        return {**batch, **self.rule.rows(number, batch, ours)}

    def eval_batches(self, split: str):
        """One pass over `split` in order, on the devices.

        Padded and masked; without what is masked where the rows of a batch meet.
        """
        batches = self.task.eval_batches(split, **self._share())
        rows: Any = self.task.objective.rows
        return to_devices(batches, self.mesh, keep=rows if self.reads_batch else None)

    def evaluate(
        self,
        eval_step: Any,
        variables: Any,
        split: str,
        watch: Callable[[Iterator[Any]], Iterator[Any]] = iter,
        note: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> dict[str, float]:
        """Scores of `variables` over `split`.

        Args:
          watch: what the batches go through, such as `Votes.watch`.
          note: of `tasks.scores.evaluate`.
        """
        batches = watch(self.eval_batches(split))
        sums = evaluate(eval_step, variables, batches, note=note)
        return self.task.summarize(sums, split)

    def _share(self) -> dict[str, int]:
        return {
            "batch_size": self.config.batch_size,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


def build_experiment(
    config: Any, devices: Sequence[Any] | None = None, described: Any = None
) -> Experiment:
    """Check `config` and build what it describes.

    Args:
      devices: default: all. Only what runs something needs devices that can.
      described: what is known of the data, which are then not opened; see `Task`.

    Raises:
      UserError: a name, value or combination that is not allowed.
    """
    check_config(config)
    mesh, rules = make_mesh(config, devices), rules_of(config)
    if config.parallelism == "pmap":
        check_mesh(mesh)
    task = TASKS[config.task].make(config, described)
    platform = mesh.devices.flat[0].platform
    model = build_model(config, platform, **task.model_arguments())
    fields = optim_of(config)
    check_stages(mesh, model)
    recipe = Recipe(
        microbatches=config.microbatches,
        deferred_batch_stats=config.deferred_batch_stats,
        ema_decay=config.ema_decay,
        auxiliary_loss_weight=config.auxiliary_loss_weight,
        skip_nonfinite=nonfinite_policy(config)[0] == "skip",
        perturb=optim.perturbation(fields, scanned_of(model)),
        penalties=penalties_of(config.to_dict().get("penalties", ())),
    )
    width = width_of(config, model, task.example)
    if width is not None:
        fields["groups"] = width.groups

    def at_rate(factor: float):
        total = config.total_steps
        optimizer = optim.build(fields, total, scanned_of(model), factor)
        return optimizer, optim.learning_rate(fields, total, factor)

    optimizer, schedule = at_rate(1.0)
    return Experiment(
        config=config,
        task=task,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        at_rate=at_rate,
        recipe=recipe,
        mesh=mesh,
        rules=rules,
        begin=width.begin if width else lambda params: params,
    )


def _joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def build_model(config: Any, platform: str = "", **arguments: Any) -> nn.Module:
    """The model of `config.model`; fractions of the run become steps.

    Args:
      platform: that it is to compute on, "cpu", "gpu" or "tpu"; default: JAX's.
      **arguments: of the model, which the data fix.
    """
    spec: dict[str, Any] = config.model.to_dict()
    norm = spec["norm"]
    if isinstance(norm, str):
        norm = {"name": norm, **norm_schedule(norm)}
    spec["norm"] = resolve_fractions(norms.NORMS, norm, first_total(config))
    dtype = computation_dtype(config, platform)
    model = models.build(spec, **arguments, dtype=dtype)
    return reparam.reparameterize(model, config.to_dict().get("reparam"))


def computation_dtype(config: Any, platform: str = "") -> Any:
    """What `config.dtype` is on a platform, by default on JAX's."""
    dtype = DTYPES[require(config, "dtype")]
    if dtype is not None:
        return dtype
    on_cpu = (platform or jax.default_backend()) == "cpu"
    return jnp.float32 if on_cpu else jnp.bfloat16
