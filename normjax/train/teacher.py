"""A run as the teacher of another one, as `config.distill` says."""

import difflib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from normjax import convert
from normjax.core.errors import UserError
from normjax.core.paths import workdir_path
from normjax.records.datasets import kept_description
from normjax.tasks import Distilled, FeaturesDistilled, Task
from normjax.tasks.base import compares_rows
from normjax.train.config import kept_config
from normjax.train.observed import Layer, Observed, layers_of
from normjax.train.rule import Rule
from normjax.train.start import saved_state

SEEN = ("mean", "std")
"""Fields of `config.data` that say how a model sees its inputs."""

FEATURES = "config.distill.features"


class Taught(Rule):
    """The teacher of `config.distill` beside the labels.

    Its weights are read when the objective is asked for.

    Args:
      config: of the run.  task: with its data.
      build_model: (config, **arguments) -> the model of a run.
    """

    def __init__(self, config: Any, task: Task, build_model: Any):
        self._config, self._task, self._build_model = config, task, build_model

    @functools.cached_property
    def _teacher(self) -> "Teacher":
        where = "config.distill.path"
        workdir = workdir_path(self._config.distill.path, where)
        return teacher_of(workdir, where, self._config, self._task, self._build_model)

    @property
    def _mix(self) -> tuple[float, float, int]:
        fields = self._config.distill
        return fields.weight, fields.temperature, fields.largest

    def objective(self, own):
        """Raises UserError as `teacher_of`."""
        return Distilled(own, self._teacher.answer, *self._mix)


class TaughtByLayers(Taught):
    """The same, of a student whose layers are to look where the teacher's do.

    Layers are matched in the order in which they are computed; nothing is resampled.
    """

    def __init__(self, config: Any, task: Task, build_model: Any):
        super().__init__(config, task, build_model)
        wrong = {
            f"config.task={config.task!r}": config.task != "image_classification",
            "config.batch_growth.test": bool(config.batch_growth.test),
            f"config.mesh.stage={config.mesh.stage}": config.mesh.stage != 1,
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(f"{FEATURES} does not go with {what}")

    def objective(self, own):
        """Raises UserError as `teacher_of`, or layers that do not match."""
        model = Observed(self._teacher.model, self._layers[1])
        observed = self._teacher._replace(model=model)
        factor = self._config.distill.feature_weight
        return FeaturesDistilled(own, observed.answer, *self._mix, factor)

    def model(self, model):
        return Observed(model, self._layers[0])

    @functools.cached_property
    def _layers(self) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """Of the student and of the teacher."""
        config, fields = self._config, self._config.distill
        student = self._build_model(config, **self._task.model_arguments())
        inputs, teacher = self._task.example(), self._teacher
        theirs = fields.teacher_features or fields.features
        pairs = (
            _chosen("this run", fields.features, layers_of(student, *inputs)),
            _chosen(teacher.title, theirs, layers_of(teacher.model, *inputs)),
        )
        _check_alike(*pairs)
        return pairs


def taught(config: Any, task: Task, build_model: Any) -> Taught:
    """The rule of `config.distill`, by layers where it names some."""
    kind = TaughtByLayers if config.distill.get("features") else Taught
    return kind(config, task, build_model)


class Teacher(NamedTuple):
    """A run as it is evaluated.

    Attributes:
      title: field or flag that names it, and its workdir.
      model: anything with the `apply` of a Flax module.
    """

    title: str
    model: Any
    variables: Any

    def answer(self, x: Any, known: Any) -> Any:
        """What the model gives to inputs and keyword inputs, logits that is."""
        arguments = {"train": False, "mutable": ["losses"], **known}
        return self.model.apply(self.variables, x, **arguments)[0]


def _chosen(whose: str, pattern: str, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those whose whole name a regular expression fits.

    Raises:
      UserError: none, or no such expression.
    """
    try:
        found = [layer for layer in layers if re.fullmatch(pattern, layer.name)]
    except re.error as error:
        raise UserError(f"{FEATURES} {pattern!r}: {error}") from None
    if not found:
        names = [layer.name for layer in layers]
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UserError(
            f"{FEATURES} {pattern!r} finds no layer of {whose} that gives tokens or a "
            f"map{hint}"
        )
    return tuple(found)


def _check_alike(ours: Sequence[Layer], theirs: Sequence[Layer]) -> None:
    """Raise UserError where layers have no counterpart."""
    if len(ours) != len(theirs):
        here, there = (", ".join(x.name for x in found) for found in (ours, theirs))
        raise UserError(
            f"{FEATURES}: {len(ours)} of this run ({here}) and {len(theirs)} of the "
            f"teacher ({there}) do not match"
        )
    for own, other in zip(ours, theirs, strict=True):
        if own.positions != other.positions:
            raise UserError(
                f"{FEATURES}: {own.name} has {own.positions} positions and "
                f"{other.name} of the teacher {other.positions}; nothing is resampled"
            )


def teacher_of(
    workdir: Path, where: str, config: Any, task: Task, build_model: Any
) -> Teacher:
    """A run as a teacher.

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
    return Teacher(where, build_model(teacher, **size), variables)
