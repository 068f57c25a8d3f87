"""The steps of a run as programs to be scheduled."""

from typing import Any

from normjax.models import REMAT_POLICIES
from normjax.plan.schedule import Program, program_of
from normjax.plan.topology import devices_of
from normjax.train.experiment import Experiment, build_experiment
from normjax.train.phases import by_phase
from normjax.train.programs import jit_eval_step, jit_train_step


def step_programs(config: Any, topology: str) -> dict[str, Program]:
    """The training and the evaluation step of a config for a topology.

    Of a norm with phases, a training step for each.

    Args:
      config: of `plan.without_data`.

    Raises:
      UserError: the config does not go with the devices.
    """
    experiment = build_experiment(config, devices_of(topology))
    state = experiment.abstract_state()
    evaluated = (state.eval_variables(), experiment.abstract_batch(train=False))
    evaluation = program_of(jit_eval_step(experiment), *evaluated)
    return {**_train_programs(experiment), "eval step": evaluation}


def recomputing_programs(config: Any, topology: str) -> dict[str, Program]:
    """The training steps of a config that keep different results of its blocks.

    Raises:
      UserError: its model has no `remat`, or as `step_programs`.
    """
    found = {}
    for remat in (False, *reversed(REMAT_POLICIES)):
        changed = config.copy_and_resolve_references()
        with changed.unlocked(), changed.ignore_type():
            changed.model.remat = remat
        experiment = build_experiment(changed, devices_of(topology))
        kept = f"remat={str(remat).lower()}"
        steps = _train_programs(experiment)
        found |= {f"{name}, {kept}": program for name, program in steps.items()}
    return found


def _train_programs(experiment: Experiment) -> dict[str, Program]:
    state, batch = experiment.abstract_state(), experiment.abstract_batch()
    train = by_phase(
        experiment, lambda: program_of(jit_train_step(experiment), state, batch)
    )
    names = (f"train step {first:,} on" if first else "train step" for first in train)
    return dict(zip(names, train.values(), strict=True))
