"""What happens inside the layers of a model while it trains.

A run with `config.diagnostics_every` computes this at those steps, writes a line a step
to `layers.jsonl` of the workdir and draws `layers.png` at the end.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from normjax.core.collections import (
    BATCH_STATS,
    DETAILS,
    INTERMEDIATES,
    LOSSES,
    OVERWRITE,
    PARAMS,
)
from normjax.core.files import whole_file
from normjax.core.lines import open_lines, read_lines
from normjax.core.paths import workdir_path
from normjax.core.scanned import scanned_of, split_layers
from normjax.models.block import Block
from normjax.tasks import Objective
from normjax.tasks.base import Batch

LAYERS_FILE = "layers.jsonl"
PLOT_FILE = "layers.png"

TITLES = {
    "activation_variance": "variance of the residual stream",
    "gradient_norm": "norm of the gradient",
    "attention_entropy": "attention entropy, nats",
    "statistics_fluctuation": "batch against running statistics",
}
"""What is computed, and its title in the plot."""


def make_diagnose(
    model: nn.Module, objective: Objective
) -> Callable[[Any, Batch], dict[str, dict[str, jax.Array]]]:
    """A function (state, batch) -> {quantity: {layer: float32 scalar}}, to be jitted.

    - activation_variance: of the output of each block, over channels, mean over tokens
      (as Mix-LN and Peri-LN draw it);
    - gradient_norm: of the parameters of each top-level module;
    - attention_entropy: -sum_j p_j log p_j of each mixer that has such p, mean over
      queries and heads (as sigmaReparam tracks it; Zhai et al., 2023);
    - head_entropy: the same of each head, "blocks_0/mixer/0" (Jha and Reagen, 2024);
    - entropy_not_finite: heads of each mixer whose entropy is no number;
    - statistics_fluctuation: of each BatchNorm, the mean over channels of
      |batch mean - running mean| / running standard deviation (after PowerNorm; Shen et
      al., 2020).
    """

    scanned = scanned_of(model)

    def diagnose(state: Any, batch: Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        (x, known), targets = objective.examples(batch, key)
        overwrite = {k: v for k, v in state.model_state.items() if k == OVERWRITE}
        rest = {k: v for k, v in state.model_state.items() if k != OVERWRITE}

        def loss(trained):
            params, overwrite = trained
            outputs, new = model.apply(
                {PARAMS: params, **rest, **overwrite},
                x,
                train=True,
                mutable=[*rest, INTERMEDIATES, DETAILS, LOSSES],
                capture_intermediates=_is_block,
                rngs={"dropout": key},
                **known,
            )
            return objective.loss(outputs, targets)[0], new

        (grads, _), new = jax.grad(loss, has_aux=True)((state.params, overwrite))
        stats = state.model_state.get(BATCH_STATS, {})
        found = (new.get(INTERMEDIATES, {}), new.get(DETAILS, {}), grads, stats)
        inside, details, grads, stats = (split_layers(t, scanned) for t in found)
        return {
            "activation_variance": _variances(inside),
            "gradient_norm": {name: _norm(tree) for name, tree in grads.items()},
            **_entropies(details),
            "statistics_fluctuation": _fluctuations(inside, stats),
        }

    return diagnose


def _is_block(module: nn.Module, method: str) -> bool:
    return isinstance(module, Block) and method == "__call__"


def _leaves(tree: Any, name: str):
    """(path of the module, what it sowed first) for everything called `name`."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda t: type(t) is tuple
    )
    for path, value in leaves:
        keys = [entry.key for entry in path]
        if keys[-1] == name:
            yield "/".join(keys[:-1]), value[0]


def _variances(inside: Any) -> dict[str, jax.Array]:
    outputs = dict(_leaves(inside, "__call__"))
    wide = {name: y.astype(jnp.float32) for name, y in outputs.items()}
    return {name: jnp.mean(jnp.var(y, axis=-1)) for name, y in wide.items()}


def _norm(tree: Any) -> jax.Array:
    return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


def _entropies(details: Any) -> dict[str, dict[str, jax.Array]]:
    """Of layers, of heads, and how many are no numbers."""
    found = {k: jnp.ravel(v) for k, v in _leaves(details, "attention_entropy")}
    heads = {f"{k}/{i}": e for k, v in found.items() for i, e in enumerate(v)}
    return {
        "attention_entropy": {k: jnp.mean(v) for k, v in found.items()},
        "head_entropy": heads,
        "entropy_not_finite": {k: jnp.sum(~jnp.isfinite(v)) for k, v in found.items()},
    }


def _fluctuations(inside: Any, stats: Any) -> dict[str, jax.Array]:
    found = {}
    for name, mean in _leaves(inside, "mean"):
        running = stats
        for key in name.split("/"):
            running = running.get(key, {})
        if "mean" in running and "var" in running:
            gap = jnp.abs(mean - running["mean"]) / jnp.sqrt(running["var"] + 1e-12)
            found[name] = jnp.mean(gap)
    return found


class LayerLog:
    """`layers.jsonl` of a workdir; lines past the step a run resumes from go."""

    def __init__(self, workdir: Path, resumed_step: int):
        kept = [r for r in read_layers(workdir) if r["step"] <= resumed_step]
        self._lines = open_lines(workdir_path(workdir) / LAYERS_FILE, kept)

    def write(self, step: int, layers: Mapping[str, Mapping[str, Any]]) -> None:
        """Record what `make_diagnose` gave at `step`."""
        values = jax.device_get(layers)
        record = {
            quantity: {k: float(v) for k, v in by_layer.items() if not math.isnan(v)}
            for quantity, by_layer in values.items()
            if by_layer
        }
        self._lines.write({"step": step, **record})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_layers(workdir: Path) -> list[dict[str, Any]]:
    """All records of the file; a half-written last line is left out."""
    return read_lines(workdir_path(workdir) / LAYERS_FILE)


def plot_layers(workdir: Path) -> Path | None:
    """Draw every quantity against depth, a line a step; None without records."""
    records = read_layers(workdir)
    kinds = [k for k in TITLES if any(k in record for record in records)]
    if not kinds:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = {"figsize": (4.5 * len(kinds), 3.6), "layout": "tight", "squeeze": False}
    figure, axes = pyplot.subplots(1, len(kinds), **size)
    shown = records[:: max(1, len(records) // 6)]
    for axis, kind in zip(axes[0], kinds, strict=True):
        for i, record in enumerate(shown):
            names, values = by_depth(record.get(kind, {}))
            color = pyplot.get_cmap("viridis")(i / max(1, len(shown) - 1))
            label = f"step {record['step']}"
            axis.plot(range(len(values)), values, "o-", ms=3, color=color, label=label)
            shown_names = [name.removeprefix("blocks_") for name in names]
            axis.set_xticks(range(len(names)), shown_names, rotation=90, fontsize=7)
        axis.set_title(TITLES[kind], fontsize=10)
        axis.set_yscale("log" if kind != "attention_entropy" else "linear")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    path = workdir_path(workdir) / PLOT_FILE
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
    return path


def by_depth(layers: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Names and values of one record's quantity, in the order of depth."""
    names = sorted(layers, key=_natural)
    return names, [layers[name] for name in names]


def _natural(name: str) -> list[Any]:
    """A key that sorts blocks_2 before blocks_10, embeddings first and heads last."""
    rank = 0 if "embed" in name or "stem" in name else 1 if "blocks" in name else 2
    parts = re.split(r"(\d+)", name)
    return [rank, *(int(p) if p.isdigit() else 0 for p in parts[1::2]), name]
