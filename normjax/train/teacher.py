"""A run as the teacher of another one, as `config.distill` says."""

from typing import Any

import jax
import jax.numpy as jnp

from normjax import convert
from normjax.core.errors import UserError
from normjax.core.paths import workdir_path
from normjax.records.datasets import kept_description
from normjax.tasks import Distilled, Objective, Task
from normjax.tasks.base import compares_rows
from normjax.train.config import kept_config
from normjax.train.start import saved_state

SEEN = ("mean", "std")
"""Fields of `config.data` that say how a model sees its inputs."""


def taught(config: Any, task: Task, build_model: Any) -> Objective:
    """The objective of a task, with the teacher of `config.distill` if it names one.

    Args:
      build_model: (config, **arguments) -> the model of a run.

    Raises:
      UserError: no such run, or one of another task, other classes or other inputs.
    """
    fields = config.distill
    if not fields.path:
        return task.objective
    if compares_rows(task.objective):
        raise UserError(
            f"config.distill.path: the loss of {config.task} compares rows, which have "
            "no answers of their own that a teacher could give"
        )
    workdir = workdir_path(fields.path, "config.distill.path")
    teacher = kept_config(workdir)
    where = f"config.distill.path {workdir}"
    if teacher.task != config.task:
        raise UserError(f"{where}: a run of {teacher.task}, not of {config.task}")
    for name in SEEN:
        then, now = (c.data.get(name) for c in (teacher, config))
        if then != now:
            raise UserError(
                f"{where} sees its inputs with data.{name}={then}, this run with {now}"
            )
    variables = jax.tree.map(jnp.asarray, saved_state(workdir).eval_variables())
    size, own = convert.size_of(variables), task.model_arguments()
    differing = [name for name, value in size.items() if own.get(name, value) != value]
    known = getattr(kept_description(config.task, workdir), "class_names", ())
    if differing or (known and known != task.class_names()):
        raise UserError(f"{where} answers with other classes")
    model = build_model(teacher, **size)

    def answer(x: Any, known: Any) -> jax.Array:
        found, _ = model.apply(variables, x, train=False, **known, mutable=["losses"])
        return found

    return Distilled(
        task.objective, answer, fields.weight, fields.temperature, fields.largest
    )
