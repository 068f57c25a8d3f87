"""The coordinate check: how much the outputs of layers move in a few updates."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from normjax.core.console import console
from normjax.core.files import whole_file
from normjax.train.experiment import build_experiment
from normjax.train.programs import jit_train_step

UPDATES = 4
LOGITS = "logits"
_BLOCK = re.compile(r"blocks_[\d_]+")


def coordinates(config: ConfigDict, updates: int = UPDATES) -> dict[str, float]:
    """Mean absolute change of what the blocks and the model give, by their names.

    On the first batch, after `updates` updates on it (Yang et al., 2022): where they
    are right for the width, the changes do not depend on it.
    """
    experiment = build_experiment(config)
    step, state = jit_train_step(experiment), experiment.create_state()
    batch = next(experiment.train_batches())
    x, known = experiment.task.objective.inputs(batch)

    @jax.jit
    def outputs(variables):
        logits, found = experiment.model.apply(
            variables,
            x,
            **known,
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: (
                method == "__call__"
                and len(module.path) == 1
                and _BLOCK.fullmatch(module.path[0]) is not None
            ),
        )
        blocks = {k: v["__call__"][0] for k, v in found["intermediates"].items()}
        return {**blocks, LOGITS: logits}

    before = outputs({"params": state.params, **state.model_state})
    for _ in range(updates):
        state, _ = step(state, batch)
    after = outputs({"params": state.params, **state.model_state})
    moved = jax.tree.map(lambda a, b: jnp.mean(jnp.abs(a - b)), after, before)
    return {name: float(value) for name, value in jax.device_get(moved).items()}


def draw_coordinates(
    configs: Mapping[tuple[str, int], ConfigDict], path: Path, updates: int = UPDATES
) -> dict[tuple[str, int], dict[str, float]]:
    """`coordinates` of every config, and a plot of them against the width.

    Args:
      configs: by (row, width); a row is an axis of the plot.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for (row, width), config in configs.items():
        found[row, width] = coordinates(config, updates)
        logits = found[row, width][LOGITS]
        console.print(f"{row}, width {width}: logits move by {logits:.3g}")
        jax.clear_caches()
    _draw(found, path, updates)
    return found


def _draw(found: Mapping[tuple[str, int], Any], path: Path, updates: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(dict.fromkeys(row for row, _ in found))
    size = {"figsize": (4.5 * len(rows), 4), "layout": "tight", "squeeze": False}
    figure, axes = pyplot.subplots(1, len(rows), sharey=True, **size)
    for axis, row in zip(axes[0], rows, strict=True):
        own = {width: values for (r, width), values in found.items() if r == row}
        for name in next(iter(own.values())):
            axis.plot(list(own), [v[name] for v in own.values()], "o-", label=name)
        axis.set(title=row, xlabel="width", xscale="log", yscale="log")
        axis.set_xticks(list(own), [str(width) for width in own])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"mean |change| in {updates} updates")
    axes[0][-1].legend(fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
