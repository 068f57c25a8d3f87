"""What is wrong with an array of a file, in words that say what to do."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from normjax.convert.files import UNQUANTIZED
from normjax.convert.layouts import SIZES, STEMS
from normjax.core.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_QUANTIZED = re.compile(
    r".*[._](qweight|qzeros|scales|weight_scale|scale_inv|SCB|absmax|"
    r"quant_map|quant_state.*|zero_point|packed)"
)


def check_types(state: Mapping[str, np.ndarray], wanted: Mapping[str, bool]) -> None:
    """Raises UserError for arrays that are not of floats though they are weights.

    Args:
      wanted: names of known arrays -> whether they are weights, not counters.
    """
    for name, array in state.items():
        kind = np.asarray(array).dtype.name
        integers = kind not in _FLOATS and wanted.get(name, False)
        if integers or (name not in wanted and _QUANTIZED.fullmatch(name)):
            raise UserError(f"{name} is quantized ({kind}): {UNQUANTIZED}")


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises UserError for NaN and infinity, in float32."""
    if array.dtype.kind in "iub":
        return
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        values = f"{bad:,} of {array.size:,} values that are no finite numbers"
        raise UserError(f"{name} holds {values}: its training had diverged")


def single_values(state: Mapping[str, np.ndarray], shapes: Shapes) -> dict[str, Any]:
    """`state`, single values in it as () or (1,), as is wanted: writers mix these up.

    Args:
      shapes: that are wanted.
    """

    def fitted(name: str, array: np.ndarray) -> np.ndarray:
        shape = shapes.get(name, np.shape(array))
        one = np.size(array) == math.prod(shape) == 1
        return np.reshape(array, shape) if one else array

    return {name: fitted(name, array) for name, array in state.items()}


def check_shapes(state: Mapping[str, np.ndarray], shapes: Shapes, side: int) -> None:
    """Raises UserError for shapes that differ, both of which it names.

    Args:
      shapes: of the arrays that the model wants.
      side: of the images that the model is made for, in pixels; 0 for text.
    """
    wrong = [n for n, shape in shapes.items() if np.shape(state[n]) != shape]
    if not wrong:
        return
    name = min(wrong, key=lambda n: not _reason(n, np.shape(state[n]), shapes[n], side))
    theirs, ours = np.shape(state[name]), shapes[name]
    reason = _reason(name, theirs, ours, side)
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    what = f"{name}{more} has shape {theirs} instead of {ours}"
    raise UserError(f"{what}: {reason}" if reason else what)


def _reason(name: str, theirs: tuple, ours: tuple, side: int) -> str:
    if 0 in theirs:
        return "it is empty, as trainings in shards leave it: gather the weights first"
    if len(theirs) != len(ours):
        return ""
    if re.fullmatch(r"(.*\.)?(pos_embed\d*|positional_encoding)", name):
        return _other_resolution(theirs, ours, side)
    if name.endswith("relative_position_bias_table"):
        window = [(round(shape[0] ** 0.5) + 1) // 2 for shape in (theirs, ours)]
        return f"the file has window_size {window[0]}, the model {window[1]}"
    for argument, (names, _, _) in SIZES.items():
        if name in names and theirs[1:] == ours[1:]:
            what = "classes" if argument == "num_classes" else "tokens"
            return f"the file has {theirs[0]} {what}, the model {ours[0]}"
    if name in STEMS and theirs[1] != ours[1]:
        return f"the file reads images of {theirs[1]} channels, the model of {ours[1]}"
    if name in STEMS and theirs[2:] != ours[2:]:
        return "the patches differ"
    return ""


def _other_resolution(theirs: tuple, ours: tuple, side: int) -> str:
    """For tables of as many positions as images have patches, and a class token."""
    if theirs[-1] != ours[-1]:
        return ""
    for tokens in (0, 1):
        grids = [(shape[1] - tokens) ** 0.5 for shape in (theirs, ours)]
        if side and grids[1] and all(grid == round(grid) for grid in grids):
            pixels = round(side * grids[0] / grids[1])
            return (
                f"its table of positions is for images of {pixels} pixels, the model "
                f"is for {side} (config.data.augment.image_size)"
            )
    return "its table of positions is for images of another resolution"
