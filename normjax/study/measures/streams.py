"""A finished run on data that it was not trained for."""

from collections.abc import Mapping
from pathlib import Path

from normjax.evaluation.adapt import Stream, adapt_run
from normjax.evaluation.run import restored
from normjax.train.config import kept_config
from normjax.train.experiment import build_experiment
from normjax.train.programs import jit_eval_step


def adapted(
    seed: int, folder: Path, method: str, order: str, corruption: str
) -> Mapping[str, float]:
    """`adapted`: top-1 of the run's model on a corrupted split, severity 5.

    Args:
      seed: not used.  folder: of a run on images.
      method: key of `normjax.adapt.ADAPTATIONS`.  order: iid or correlated.
      corruption: key of `normjax.data.corrupt.STRENGTHS`.
    """
    stream = Stream(corruption=corruption, order=order)
    methods = [] if method == "source" else [method]
    return {"adapted": adapt_run(folder, methods, stream)[method]["top1"]}


def longer_rows(seed: int, folder: Path, factor: int) -> Mapping[str, float]:
    """`long`: bits per byte of the run on rows `factor` times as long as its own.

    `loss_of_length`: how much more that is than on rows of its own length.

    Args:
      seed: not used.  folder: of a run on text.
    """
    config = kept_config(folder)
    state, found = restored(build_experiment(config), folder), []
    for times in (1, factor):
        with config.unlocked():
            config.data.text.length *= times
        experiment = build_experiment(config)
        step, split = jit_eval_step(experiment), config.data.eval_split
        scores = experiment.evaluate(step, state.eval_variables(), split)
        found.append(scores["bits_per_byte"])
    own, long = found
    return {"long": long, "loss_of_length": long - own}
