"""What a run has seen inside its layers."""

from collections.abc import Mapping
from pathlib import Path

from normjax.analysis.layers import by_depth, read_layers


def last_layers(seed: int, folder: Path, quantity: str) -> Mapping[str, float]:
    """The last look into the layers: `_first`, `_last`, `_mean`, `_growth` by depth.

    Args:
      seed: not used.
      folder: of a run with `config.diagnostics_every`.
      quantity: key of `normjax.analysis.layers.TITLES`.
    """
    _, values = by_depth(read_layers(folder)[-1][quantity])
    return {
        f"{quantity}_first": values[0],
        f"{quantity}_last": values[-1],
        f"{quantity}_mean": sum(values) / len(values),
        f"{quantity}_growth": values[-1] / values[0],
    }
