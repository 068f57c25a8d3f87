"""What a recipe gives at the best of a few learning rates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normjax.train.loop import train
from normjax.train.nonfinite import NonFiniteLoss


def best_rate(
    seed: int, folder: Path, config: Any, rates: Sequence[float]
) -> Mapping[str, Any] | None:
    """The final evaluation of the run with the lowest "nll" on the eval split.

    Args:
      seed: of the runs.  folder: gets a run a rate, in a folder of its name.
      config: of a task with an "nll".  rates: of `config.optim.lr`.

    Returns:
      metrics, `lr`, and `run`, the name of the run's folder; None after a signal.

    Raises:
      NonFiniteLoss: all runs diverged.
    """
    best: dict[str, Any] = {"nll": math.inf}
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
    if diverged and "run" not in best:
        raise diverged
    return best
