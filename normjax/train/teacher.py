"""A run as the teacher of another one, as `config.distill` says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from normjax import convert
from normjax.core.errors import UserError
from normjax.core.paths import workdir_path
from normjax.records.datasets import kept_description
from normjax.tasks import Distilled, Task
from normjax.tasks.base import compares_rows
from normjax.train.config import kept_config
from normjax.train.rule import Rule
from normjax.train.start import saved_state

SEEN = ("mean", "std")
"""Fields of `config.data` that say how a model sees its inputs."""


class Taught(Rule):
    """The teacher of `config.distill` beside the labels.

    Its weights are read when the objective is asked for.

    Args:
      config: of the run.  task: with its data.
      build_model: (config, **arguments) -> the model of a run.
    """

    def __init__(self, config: Any, task: Task, build_model: Any):
        self._made = config, task, build_model

    def objective(self, own):
        """Raises UserError as `teacher_of`."""
        fields, where = self._made[0].distill, "config.distill.path"
        answer = teacher_of(workdir_path(fields.path, where), where, *self._made)
        mix = fields.weight, fields.temperature, fields.largest
        return Distilled(own, answer, *mix)


def teacher_of(
    workdir: Path, where: str, config: Any, task: Task, build_model: Any
) -> Callable[[Any, Any], jax.Array]:
    """(inputs, keyword inputs) -> logits of a run as it is evaluated.

    Args:
      where: field or flag that names it.  config: of the run that it teaches.
      task: of that.  build_model: (config, **arguments) -> the model of a run.

    Raises:
      UserError: no such run, or one of another task, other classes or other inputs.
    """
    if compares_rows(task.objective):
        raise UserError(
            f"{where}: the loss of {config.task} compares rows, which have no answers "
            "of their own that a teacher could give"
        )
    teacher, where = kept_config(workdir), f"{where} {workdir}"
    if teacher.task != config.task:
        raise UserError(f"{where}: a run of {teacher.task}, not of {config.task}")
    for name in SEEN:
        then, now = (c.data.get(name) for c in (teacher, config))
        if then != now:
            raise UserError(
                f"{where} sees its inputs with data.{name}={then}, this run with {now}"
            )
    variables = jax.tree.map(jnp.asarray, saved_state(workdir).eval_variables())
    size, sizes = convert.size_of(variables), task.model_arguments()
    differing = [n for n, value in size.items() if sizes.get(n, value) != value]
    known = getattr(kept_description(config.task, workdir), "class_names", ())
    if differing or (known and known != task.class_names()):
        raise UserError(f"{where} answers with other classes")
    model = build_model(teacher, **size)

    def answer(x: Any, known: Any) -> jax.Array:
        found, _ = model.apply(variables, x, train=False, **known, mutable=["losses"])
        return found

    return answer
