"""What a recipe gives at the best of a few learning rates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normjax.core.errors import UserError
from normjax.core.files import exists
from normjax.records.json_files import read_json, write_json
from normjax.train.loop import train
from normjax.train.nonfinite import NonFiniteLoss

CHOICE_FILE = "rate.json"


def best_rate(
    seed: int, folder: Path, config: Any, rates: Sequence[float], first: int = 0
) -> Mapping[str, Any] | None:
    """The final evaluation at the rate that gave the first seed the lowest "nll".

    Args:
      seed: of the runs.  folder: gets a run a rate, in a folder of its name.
      config: of a task with an "nll".  rates: of `config.optim.lr`.
      first: the seed that tries all of them; its folder lies beside this one.

    Returns:
      metrics, `lr`, and `run`, the name of the run's folder; None after a signal.

    Raises:
      NonFiniteLoss: all runs diverged.
      UserError: another seed, before the first.
    """
    if seed != first:
        choice = folder.with_name(str(first)) / CHOICE_FILE
        if not exists(choice):
            raise UserError(
                f"best_rate: seed {first} chooses the rate, and comes first"
            )
        rates = [read_json(choice)["lr"]]
    best: dict[str, Any] = {"nll": math.inf, "lr": min(rates)}
    diverged = None
    for rate in rates:
        config = config.copy_and_resolve_references()
        config.seed, config.optim.lr = seed, rate
        run = f"{rate:g}"
        try:
            found = train(config, folder / run)
        except NonFiniteLoss as error:
            diverged = error
            continue
        if found is None:
            return None
        if found["nll"] < best["nll"]:
            best = {**found, "lr": rate, "run": run}
    write_json(folder / CHOICE_FILE, {"lr": best["lr"]})
    if diverged and "run" not in best:
        raise diverged
    return best
