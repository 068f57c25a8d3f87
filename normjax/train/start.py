"""Runs that begin with given variables, and the variables that a run has reached."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from normjax import optim
from normjax.core.errors import UserError
from normjax.records.arrays import another_model, check_same_arrays
from normjax.records.checkpoint import Checkpoints
from normjax.records.datasets import keep_description
from normjax.records.workdir import held
from normjax.train.config import keep_config, optim_of
from normjax.train.rule import MEMORIES
from normjax.train.state import TrainState, state_of


def start_from(
    config: Any,
    variables: dict[str, Any],
    workdir: Path,
    description: Any = None,
    scanned: tuple[str, ...] = (),
) -> None:
    """Write a run before its first step, whose model has `variables`.

    Args:
      description: of its data, as of `Task.description`.
      scanned: of the model, see `core.scanned`.

    Raises:
      UserError: the workdir holds a checkpoint, or the config of another run; or one
        is at work in it.
    """
    with held(workdir):
        _write_start(config, variables, workdir, scanned)
        keep_description(description, workdir)


def _write_start(
    config: Any, variables: dict[str, Any], workdir: Path, scanned: tuple[str, ...]
) -> None:
    if config.get("init", {}).get("path"):
        raise UserError("config.init.path has no effect: this run begins otherwise")
    if config.optim.get("mup_base_width", 0):
        raise UserError(
            "config.optim.mup_base_width has no effect: this run begins otherwise"
        )
    for field in MEMORIES:
        section, name = field.split(".")
        if config.get(section, {}).get(name):
            raise UserError(
                f"config.{field} has no place here: begin a run with it by "
                "config.init.path"
            )
    keep_config(config, workdir, write=False)
    checkpoints = Checkpoints(workdir)
    try:
        if checkpoints.latest() is not None:
            raise UserError(f"workdir {workdir} holds a checkpoint: choose another")
        keep_config(config, workdir)
        variables = jax.tree.map(jnp.asarray, variables)
        optimizer = optim.build(optim_of(config), config.total_steps, scanned)
        rng, use_ema = jax.random.key(config.seed), config.ema_decay > 0
        checkpoints.save(state_of(variables, optimizer, rng, use_ema=use_ema))
    finally:
        checkpoints.close()


def saved_variables(workdir: Path, like: TrainState | None = None) -> dict[str, Any]:
    """What the newest checkpoint of a run is evaluated with, on the host.

    Args:
      like: a state, or its shapes, that the checkpoint must have.

    Raises:
      UserError: there is none, none that is not damaged, or one of another model.
    """
    found = saved_state(workdir).eval_variables()
    if like is not None:
        what = another_model(f"workdir {workdir}")
        check_same_arrays(found, like.eval_variables(), what)
    return found


def saved_state(workdir: Path) -> TrainState:
    """The newest checkpoint of a run, on the host.

    Raises:
      UserError: there is none, or none that is not damaged.
    """
    checkpoints = Checkpoints(workdir)
    try:
        state = checkpoints.read_newest()
    finally:
        checkpoints.close()
    if state is None:
        raise UserError(f"workdir {workdir} holds no complete checkpoint")
    return TrainState(**state)
