"""The compiled functions of an experiment: one place says how each lies on the mesh."""

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

import normjax
from normjax.analysis.layers import make_diagnose
from normjax.core.collections import BATCH_STATS, OVERWRITE
from normjax.core.compiler import compiler_options
from normjax.core.errors import UserError
from normjax.core.scanned import scanned_of
from normjax.devices.mesh import DATA, STAGE, batch_shards, replicated
from normjax.devices.per_device import per_device, with_axis_name
from normjax.devices.votes import STOP, with_votes
from normjax.tasks.scores import make_eval_step, make_noted_step
from normjax.train.everywhere import everywhere
from normjax.train.experiment import Experiment
from normjax.train.frozen import Frozen, frozen_modules
from normjax.train.growth import check_growth, make_measure
from normjax.train.state import of_model
from normjax.train.step import Recipe, make_gradients, make_train_step

LARGEST_ARRAY = 2**31 - 1
"""Elements of an array on a CPU device."""


def jit_train_step(experiment: Experiment) -> Any:
    """(state, batch) -> (state, metrics); the state that is given is used up."""
    e, objective, recipe = experiment, experiment.objective, _recipe(experiment)
    model, gradients = e.rule.model(_frozen(e, e.placed())), None
    if e.config.parallelism == "pmap":
        model = with_axis_name(e.model, DATA) if e.config.sync_batch_stats else e.model
        model = e.rule.model(_frozen(e, model))
        share = 1 / batch_shards(e.mesh)
        own = make_gradients(model, everywhere(objective), recipe, share)
        gradients = per_device(own, e.mesh)
    step = make_train_step(model, objective, e.optimizer, e.schedule, recipe, gradients)
    outputs = (e.shardings, replicated(e.mesh))
    step = with_votes(step, e.mesh)
    return _jit(e, step, outputs, donate_argnums=0)


def _recipe(experiment: Experiment) -> Recipe:
    """Microbatches that are in several stages at one time are one call of the model."""
    stages, recipe = experiment.mesh.shape[STAGE], experiment.recipe
    if stages == 1:
        return recipe
    parted, state = recipe.microbatches > 1, experiment.abstract_state().model_state
    finished = {
        "config.deferred_batch_stats": recipe.deferred_batch_stats and parted,
        "config.optim.sam_rho": recipe.perturb is not None and parted,
        "what the backward pass writes (power_norm, ...)": OVERWRITE in state,
    }
    for what, wanted in finished.items():
        if wanted:
            hint = "needs all of one microbatch before the next begins"
            raise UserError(f"config.mesh.stage={stages}: {what} {hint}")
    return recipe._replace(microbatches=1)


def _frozen(experiment: Experiment, model: Any) -> Any:
    """`model` with norms that keep their statistics, if there are to be any."""
    config = experiment.config.optim
    if not config.get("frozen_statistics", False):
        return model
    state, scanned = experiment.abstract_state(), scanned_of(experiment.model)
    return Frozen(model, frozen_modules(config, state, scanned))


def _evaluated(experiment: Experiment) -> Any:
    """The model for evaluation; rows that meet there are not apart in microbatches."""
    placed = experiment.placed()
    return placed._replace(microbatches=0) if experiment.reads_batch else placed


def jit_eval_step(experiment: Experiment, model: nn.Module | None = None) -> Any:
    """(variables, batch) -> sums of the metrics.

    Args:
      model: default: the experiment's, its parameters where the state has them; any
        other is given variables that are whole on every device.
    """
    e = experiment
    apply = _evaluated(e).apply if model is None else model.apply
    step = make_eval_step(_unrecorded(apply), e.task.objective)
    return _jit(e, step, replicated(e.mesh))


def jit_noted_step(experiment: Experiment) -> Any:
    """(variables, batch) -> (sums of the metrics, what is answered in each row)."""
    e = experiment
    step = make_noted_step(_unrecorded(_evaluated(e).apply), e.task.objective)
    return _jit(e, step, replicated(e.mesh))


def jit_diagnose(experiment: Experiment) -> Any:
    """(state, batch) -> what happens inside the layers; see `diagnostics`."""
    e = experiment
    diagnose = make_diagnose(e.placed(), e.task.objective)

    def of_own(state, batch):
        return diagnose(state.replace(params=of_model(state.params)), batch)

    return _jit(e, of_own, replicated(e.mesh))


def jit_measure(experiment: Experiment) -> Any:
    """(state, batch) -> whether the batch is large enough; see `growth`."""
    e = experiment
    scanned, parts = scanned_of(e.model), e.recipe.microbatches
    measure = make_measure(e.model, e.objective, parts, e.config, scanned)

    def whole(state, batch):
        # Of single examples nothing is split but the rows.
        params = jax.lax.with_sharding_constraint(state.params, replicated(e.mesh))
        rest = {name: rows for name, rows in batch.items() if name != STOP}
        return measure(state.replace(params=params), rest)

    return _jit(e, whole, replicated(e.mesh))


def jit_answers(experiment: Experiment, model: nn.Module) -> Any:
    """(variables, batch) -> `Objective.answers`, whole on every device."""

    apply, objective = _unrecorded(model.apply), experiment.task.objective

    def answers(variables, batch):
        x, known = objective.inputs(batch)
        return objective.answers(apply(variables, x, train=False, **known), batch)

    return _jit(experiment, answers, replicated(experiment.mesh))


def jit_labelled_answers(experiment: Experiment, model: nn.Module) -> Any:
    """(variables, batch) -> (*`Objective.answers`, labels), whole on every device."""

    apply, objective = _unrecorded(model.apply), experiment.task.objective

    def answers(variables, batch):
        x, known = objective.inputs(batch)
        outputs = apply(variables, x, train=False, **known)
        return *objective.answers(outputs, batch), batch["label"]

    return _jit(experiment, answers, replicated(experiment.mesh))


def _unrecorded(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply`, and what norms record that evaluate by the batch is let go."""

    def evaluate(variables, x, **known):
        return apply(variables, x, mutable=[BATCH_STATS], **known)[0]

    return evaluate


def _jit(experiment: Experiment, function: Any, out_shardings: Any, **rest) -> Any:
    options = compiler_options(_platform(experiment))
    return jax.jit(
        function, out_shardings=out_shardings, compiler_options=options, **rest
    )


def _platform(experiment: Experiment) -> str:
    return experiment.mesh.devices.flat[0].platform


def trace_train_step(experiment: Experiment) -> jax.stages.Traced:
    """The training step for the experiment's shapes, before it is compiled.

    Raises:
      UserError: the config asks for what cannot be computed, such as windows larger
        than images; says what went wrong and in which line.
    """
    e = experiment
    with _refusing("trained"):
        arguments = e.abstract_state(), e.abstract_batch()
        _check_sizes(e, arguments)
        return jit_train_step(e).trace(*arguments)


def trace_eval_step(experiment: Experiment) -> jax.stages.Traced:
    """The evaluation step, as `trace_train_step`."""
    e = experiment
    with _refusing("evaluated"):
        variables = e.abstract_state().eval_variables()
        arguments = variables, e.abstract_batch(train=False)
        _check_sizes(e, arguments)
        return jit_eval_step(e).trace(*arguments)


def trace_measure(experiment: Experiment) -> jax.stages.Traced:
    """The test of the batch size, as `trace_train_step`."""
    e = experiment
    with _refusing("trained with batch_growth"):
        check_growth(e)
        return jit_measure(e).trace(e.abstract_state(), e.abstract_batch())


def lower_train_step(experiment: Experiment) -> jax.stages.Lowered:
    """The training step for the experiment's shapes; touches no device."""
    return trace_train_step(experiment).lower()


@contextlib.contextmanager
def _refusing(done: str) -> Iterator[None]:
    """Whatever the layers trip over becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"this config cannot be {done}: {_where(error)}") from error


def _check_sizes(experiment: Experiment, arguments: Any) -> None:
    """XLA's CPU backend keeps sizes in 32 bits and aborts the process over larger ones.

    On other devices they are a matter of memory, which `normjax.plan` tells.
    """
    if _platform(experiment) != "cpu":
        return
    for path, x in jax.tree_util.tree_leaves_with_path(arguments):
        size = math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape)
        if size > LARGEST_ARRAY:
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise UserError(
                f"{name} {x.shape} has {size:,} elements on a device; a CPU computes "
                f"with {LARGEST_ARRAY:,} at most"
            )


def _where(error: Exception) -> str:
    """The error in one line, with the line of this project that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(normjax.__file__).parent
    own = [frame for frame in frames if root in Path(frame.filename).parents]
    text = (str(error).splitlines() or [""])[0]
    file = Path(own[-1].filename).relative_to(root.parent)
    return f"{type(error).__name__}: {text} ({file}, line {own[-1].lineno})"
