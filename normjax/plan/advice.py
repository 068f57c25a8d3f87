"""What to change in a run that does not fit: the first of a few that does."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from normjax.core.errors import UserError
from normjax.devices.mesh import BATCH_AXES, STAGE
from normjax.plan.plan import Plan, make_plan


def find_fit(config: Any, plan: Plan, devices: Sequence[Any]) -> str | None:
    """Overrides with which `plan` fits; None if none of the candidates does.

    Compiles the steps that do not fit for recomputed blocks, for sharded parameters and
    for smaller microbatches, each alone where it may be enough, then for all of them.
    """
    short = [name for name, step in plan.steps.items() if step.excess > 0]
    for overrides in candidates(config, plan):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            for field, value in overrides.items():
                *path, name = field.split(".")
                node = changed
                for part in path:
                    node = node[part]
                node[name] = value
        try:
            tried = make_plan(changed, plan.name, devices, short)
        except UserError:  # a model without recomputation, rows that do not divide
            continue
        if all(step.excess <= 0 for step in tried.steps.values()):
            return as_flags(overrides)
    return None


def as_flags(overrides: dict[str, Any]) -> str:
    """As they stand on a command line."""
    text = {field: str(value).lower() for field, value in overrides.items()}
    return " ".join(f"--config.{field}={value}" for field, value in text.items())


def candidates(config: Any, plan: Plan) -> Iterator[dict[str, Any]]:
    """Overrides to try, in order; fields of `config` without its name."""
    step = plan.steps["train"]
    memory, available = step.memory, step.available or 0.0
    state = memory.parameters + memory.optimizer + memory.average
    remat = {} if config.model.get("remat") else {"model.remat": True}
    fsdp = {}
    alone = plan.mesh["fsdp"] == plan.mesh.get(STAGE, 1) == 1
    if plan.count > 1 and config.parallelism == "jit" and alone:
        fsdp = {"mesh.data": 1, "mesh.fsdp": plan.count // plan.mesh["tensor"]}
    if step.excess <= 0:  # it is evaluation that does not fit
        yield from filter(None, [fsdp])
        return
    saved = state * (1 - 1 / plan.count) if fsdp else 0.0
    free = available - (memory.total - memory.temporaries)
    micro = _microbatches(config, plan, memory.temporaries, free)
    if remat:
        yield remat
    if fsdp and saved > step.excess:
        yield fsdp
    if micro:
        yield micro
    if fsdp:
        micro = _microbatches(config, plan, memory.temporaries, free + saved)
        yield {**remat, **fsdp, **micro}
    elif remat and micro:
        yield {**remat, **micro}


def _microbatches(
    config: Any, plan: Plan, temporaries: float, free: float
) -> dict[str, Any]:
    """As many as make the temporaries small enough, if those shrink in proportion."""
    shards = math.prod(plan.mesh.get(axis, 1) for axis in BATCH_AXES)
    rows = config.batch_size // shards
    if free <= 0:
        return {}
    # A tenth more: gradients and the like do not shrink.
    wanted = config.microbatches * math.ceil(1.1 * temporaries / free)
    fitting = [n for n in range(wanted, rows + 1) if rows % n == 0]
    return {"microbatches": fitting[0]} if fitting else {}
