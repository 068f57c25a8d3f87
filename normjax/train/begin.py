"""The state of a run that begins with other weights, as `config.init` says."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from normjax import convert
from normjax.core.errors import UserError
from normjax.core.paths import is_local, local_path, workdir_path
from normjax.core.scanned import is_scanned, paths_of_layers, scanned_of
from normjax.devices.processes import is_first
from normjax.records import report
from normjax.records.datasets import kept_description
from normjax.records.json_files import write_json
from normjax.records.workdir import CHECKPOINTS
from normjax.train.config import config_exists, kept_config
from normjax.train.experiment import Experiment, build_model
from normjax.train.start import saved_state
from normjax.train.state import TrainState, state_of
from normjax.transfer.match import Matched, match
from normjax.transfer.source import Source, of_file, of_variables, schedule_end
from normjax.transfer.wanted import Wanted

INIT_FILE = "init.json"


class Beginning(NamedTuple):
    """What a run begins with.

    Attributes:
      title: of the source.  matched: what became of its arrays and of the model's.
    """

    title: str
    matched: Matched


def beginning(experiment: Experiment) -> Beginning | None:
    """What `config.init` makes of the state; None where it names no weights.

    Raises:
      UserError: no such weights, or arrays that nothing accounts for.
    """
    init, shape = experiment.config.init, _image_shape(experiment)
    if not init.path:
        return None
    read = _of_run if _is_run(init.path) else _of_file
    source = read(experiment, init, shape)
    own = {k: init[k] for k in ("include", "exclude", "head", "schedule")}
    wanted = Wanted(
        shapes=_shapes(experiment),
        end=schedule_end(experiment.model),
        class_names=experiment.task.class_names(),
        aspect=_aspect(shape),
        **own,
    )
    return Beginning(source.title, match(source, wanted))


def begun_state(experiment: Experiment, begin: Beginning) -> TrainState:
    """The state before the first step, on the devices."""
    state = experiment.create_state()
    scanned = scanned_of(experiment.model)
    variables = state.variables()
    given = begin.matched.arrays
    there: Any = flatten_dict(variables, sep="/")
    flat: Any = {
        path: _replaced(path, leaf, given, scanned) for path, leaf in there.items()
    }
    rng = jax.random.wrap_key_data(state.rng)
    use_ema = experiment.config.ema_decay > 0

    # The optimizer's state may depend on where parameters begin.
    def make(variables, rng):
        variables = experiment.rule.begin(variables)
        state = state_of(variables, experiment.optimizer, rng, use_ema=use_ema)
        return state.replace(memory=experiment.rule.memory(variables))

    make = jax.jit(make, out_shardings=experiment.shardings)
    return make(unflatten_dict(flat, sep="/"), rng)


def tell(begin: Beginning, workdir: Path) -> None:
    """Print what came from where, and keep it in the workdir; in the first process."""
    if not is_first():
        return
    matched, rows = begin.matched, []
    parts = {
        "taken": {p: matched.how[p] for p in matched.arrays},
        "new": {p: matched.how[p] for p in matched.new},
        "left out": matched.left,
    }
    for what, found in parts.items():
        rows += [(what, name, count, why) for name, count, why in _grouped(found)]
    report.table(f"begins with {begin.title}", ("", "arrays", "number", "how"), rows)
    kept = {"source": begin.title, **parts}
    write_json(workdir_path(workdir) / INIT_FILE, kept)


def _grouped(found: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """Rows of arrays; those that are as they were in one."""
    same = [path for path, how in found.items() if how == "same"]
    other = {path: how for path, how in found.items() if how != "same"}
    rows = convert.grouped(other)
    if not same:
        return rows
    return [("all others" if rows else "all", len(same), "same"), *rows]


def _is_run(path: str) -> bool:
    """Whether it is a workdir, and no file or folder of published weights."""
    folder = workdir_path(path, "config.init.path")
    if not is_local(folder):
        return True
    if not folder.exists():
        raise UserError(f"config.init.path {path}: there is nothing")
    return folder.is_dir() and config_exists(folder) and (folder / CHECKPOINTS).is_dir()


def _of_run(experiment: Experiment, init: Any, shape: Any) -> Source:
    """The newest state of another run."""
    workdir = workdir_path(init.path, "config.init.path")
    config = kept_config(workdir)
    state = saved_state(workdir)
    averaged = state.ema is not None and init.ema != "raw"
    if init.ema == "averaged" and not averaged:
        raise UserError(f"config.init.ema='averaged': {workdir} keeps no average")
    variables = state.eval_variables() if averaged else state.variables()
    model = build_model(config, **convert.size_of(variables))
    known = kept_description(config.task, workdir)
    names = getattr(known, "class_names", ())
    sized = config.task == experiment.config.task and shape
    resized = sized and config.data.augment.image_size
    aspect = 1.0 if resized else _aspect(getattr(known, "shape", None) or shape)
    which = ", averaged" if averaged else ""
    title = f"{workdir} (step {int(state.step):,}{which})"
    return of_variables(title, variables, model, class_names=names, aspect=aspect)


def _of_file(experiment: Experiment, init: Any, shape: Any) -> Source:
    arguments = experiment.task.model_arguments()
    return of_file(
        local_path("config.init.path", init.path),
        experiment.config,
        functools.partial(build_model, **arguments),
        shape,
        averaged=init.ema == "averaged",
    )


def _image_shape(experiment: Experiment) -> tuple[int, ...]:
    """[H, W, C] of its images; () of text."""
    row = experiment.task.row()
    return row["image"].shape if "image" in row else ()


def _aspect(shape: tuple[int, ...]) -> float:
    return shape[0] / shape[1] if shape else 1.0


def _shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of the model, scanned layers apart."""
    state, scanned = experiment.abstract_state(), scanned_of(experiment.model)
    flat: Any = flatten_dict(state.variables(), sep="/")
    shapes = {}
    for path, leaf in flat.items():
        for layer in _layers(path, leaf.shape, scanned):
            shapes[layer] = leaf.shape[layer != path :]
    return shapes


def _layers(path: str, shape: tuple[int, ...], scanned: tuple[str, ...]) -> list[str]:
    collection, _, name = path.partition("/")
    depth = shape[0] if shape else 0
    return [f"{collection}/{n}" for n in paths_of_layers(name, scanned, depth)]


def _replaced(
    path: str, leaf: jax.Array, given: Mapping[str, np.ndarray], scanned: Any
) -> jax.Array:
    """`leaf` with what is given of it, lying as it does."""
    layers = _layers(path, leaf.shape, scanned)
    found = [layer in given for layer in layers]
    if not any(found):
        return leaf
    if not is_scanned(path.partition("/")[2], scanned):
        return _placed(given[path], leaf)
    zeros = np.zeros(leaf.shape[1:], leaf.dtype)
    whole = _placed(np.stack([given.get(layer, zeros) for layer in layers]), leaf)
    if all(found):
        return whole
    chosen = np.asarray(found).reshape(-1, *(1,) * (leaf.ndim - 1))
    choose = jax.jit(jnp.where, out_shardings=leaf.sharding)
    return choose(np.broadcast_to(chosen, leaf.shape), whole, leaf)


def _placed(array: np.ndarray, like: jax.Array) -> jax.Array:
    array = np.asarray(array, like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda i: array[i])
