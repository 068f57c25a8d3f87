"""Presets as rows: what is published of each."""

import math
from typing import Any

from normjax.families import FAMILIES

COLUMNS = (
    *("preset", "family", "parameters", "multiply-adds, 1e9", "pixels"),
    *("top-1, %", "weights of"),
)


def rows(
    family: str = "", name: str = "", at_least: float = 0, at_most: float = math.inf
) -> list[tuple[Any, ...]]:
    """A row of `COLUMNS` for each preset that fits, "" where nothing is published.

    Args:
      family: key of `FAMILIES`; "" for all.
      name: part of the names of presets.
      at_least, at_most: 1e6 parameters; presets of unknown size fit no bound.

    Example:
      >>> from normjax.families.listing import rows
      >>> rows(name="resnet18")[0][:5]
      ('resnet18', 'resnet', 11689512, 1.814, 224)
    """
    bounded, found = at_least > 0 or at_most < math.inf, []
    for one in FAMILIES.values() if not family else (FAMILIES[family],):
        for preset in one.presets:
            figures = one.figures.get(preset)
            size = figures.parameters / 1e6 if figures else math.nan
            if name not in preset or (bounded and not at_least <= size <= at_most):
                continue
            if figures is None:
                found.append((preset, one.name, *[""] * 5))
                continue
            known = (figures.multiply_adds, figures.image_size, figures.top_1)
            source = figures.source if figures.top_1 is not None else ""
            cells = ("" if cell is None else cell for cell in known)
            found.append((preset, one.name, figures.parameters, *cells, source))
    return found
