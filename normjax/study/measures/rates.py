"""What a recipe gives at the best of a few learning rates."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from normjax.core.errors import UserError
from normjax.core.files import exists, write
from normjax.records.json_files import read_json, write_json
from normjax.records.report import METRICS_FILE
from normjax.train.experiment import Experiment, build_experiment
from normjax.train.programs import jit_eval_step
from normjax.train.step import make_train_step

CHOICE_FILE = "rate.json"


def best_rate(
    seed: int, folder: Path, config: Any, rates: Sequence[float], first: int = 0
) -> Mapping[str, Any]:
    """The final evaluation at the rate that gave the first seed the lowest "nll".

    One program serves all rates. What was measured on the way, every
    `config.eval_every` steps, goes to metrics.jsonl.

    Args:
      seed: of the runs.  folder: gets what the best rate gave.
      config: of a task with an "nll", on one device.  rates: of `config.optim.lr`.
      first: the seed that tries all of them; its folder lies beside this one.

    Returns:
      metrics and `lr`; an `error` where all runs diverged.

    Raises:
      UserError: another seed, before the first.
    """
    choice = folder.with_name(str(first)) / CHOICE_FILE
    if seed != first and not exists(choice):
        raise UserError(f"best_rate: seed {first} chooses the rate, and comes first")
    config = config.copy_and_resolve_references()
    config.seed = seed
    e = build_experiment(config)
    wanted = rates if seed == first else [read_json(choice)["lr"]]
    curves = _curves(e, [rate / config.optim.lr for rate in wanted])
    ends = [curve[-1]["eval_nll"] for curve in curves]
    best = min(range(len(ends)), key=lambda i: ends[i])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CHOICE_FILE, {"lr": wanted[best]})
    lines = "".join(json.dumps(record) + "\n" for record in curves[best])
    write(folder / METRICS_FILE, lines.encode())
    if math.isinf(ends[best]):
        return {"error": "diverged at every rate"}
    last = {k.removeprefix("eval_"): v for k, v in curves[best][-1].items()}
    return {**last, "lr": wanted[best]}


def _curves(e: Experiment, factors: Sequence[float]) -> list[list[dict[str, Any]]]:
    """What evaluations gave with each multiple of the rate; infinite from where on a
    run diverges."""

    def update(factor, state, batch):
        parts = e.rule.model(e.placed()), e.objective, *e.at_rate(factor), e.recipe
        return make_train_step(*parts)(state, batch)[0]

    step, evaluate = jax.jit(update, donate_argnums=1), jit_eval_step(e)
    begun, every = e.create_state(), e.config.eval_every
    found: list[list[dict[str, Any]]] = []
    for factor in factors:
        state, batches = jax.tree.map(jnp.copy, begun), e.train_batches()
        curve: list[dict[str, Any]] = []
        for made in range(1, e.config.total_steps + 1):
            state = step(factor, state, next(batches))
            if made % every and made < e.config.total_steps:
                continue
            variables = state.eval_variables()
            scores = e.evaluate(evaluate, variables, e.config.data.eval_split)
            if not math.isfinite(scores["nll"]):
                scores = {"nll": math.inf}
            shown = {f"eval_{name}": value for name, value in scores.items()}
            curve.append({"step": made, **shown})
            if math.isinf(scores["nll"]):
                break
        found.append(curve)
    return found
