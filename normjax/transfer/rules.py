"""How an array is fitted to a model in which it has another shape.

A rule is a row of `RULES`: a pattern of paths, and a function of the array, the shape
that is wanted and what is known of both models; it gives the new array and what was
done, or raises `Misfit`.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from normjax.transfer.resample import (
    adapt_channels,
    resize_grid,
    resize_offsets,
    resize_patches,
)

Shape = tuple[int, ...]


class Misfit(Exception):
    """Why a rule cannot fit an array."""


class Views(NamedTuple):
    """What arrays alone do not say.

    Attributes:
      theirs, ours: height / width of the images of the source, and of the model.
    """

    theirs: float = 1.0
    ours: float = 1.0


class Rule(NamedTuple):
    """See the head of the file."""

    pattern: str
    fit: Callable[[np.ndarray, Shape, Views], tuple[np.ndarray, str]]


class Table(NamedTuple):
    """A table of positions: tokens that have no place in the image, then a grid."""

    tokens: int
    grid: tuple[int, int]
    features: int

    def __str__(self) -> str:
        tokens = f"{self.tokens} + " if self.tokens else ""
        return f"{tokens}{self.grid[0]}x{self.grid[1]}"


def table_of(shape: Shape, aspect: float) -> Table:
    """What a table of this shape is made of: [H, W, C], or [L, C] of a sequence.

    A first axis of 1 is the batch's.

    Args:
      aspect: H / W of the images, which tells the grid of a sequence.

    Raises:
      Misfit: a number of positions that is no such grid and at most two tokens.
    """
    if len(shape) == 4 or (len(shape) == 3 and shape[0] == 1):
        shape = shape[1:]
    if len(shape) == 3:
        return Table(0, (shape[0], shape[1]), shape[2])
    length, features = shape
    for tokens in (0, 1, 2):
        height = round(math.sqrt((length - tokens) * aspect))
        width = (length - tokens) // max(height, 1)
        if height * width == length - tokens and round(width * aspect) == height:
            return Table(tokens, (height, width), features)
    raise Misfit(f"{length} positions are no grid of images of this shape")


def fit_positions(array: np.ndarray, shape: Shape, views: Views):
    """Another grid, and other tokens before it."""
    theirs, ours = table_of(array.shape, views.theirs), table_of(shape, views.ours)
    if theirs.features != ours.features:
        raise Misfit("of another width")
    rows = array.reshape(-1, theirs.features)
    tokens, grid = rows[: theirs.tokens], rows[theirs.tokens :]
    grid = grid.reshape(*theirs.grid, -1)
    if theirs.grid != ours.grid:
        grid = resize_grid(grid, ours.grid)
    new = np.zeros((max(ours.tokens - theirs.tokens, 0), ours.features), np.float32)
    tokens = np.concatenate([tokens[: ours.tokens], new])
    whole = np.concatenate([tokens, grid.reshape(-1, ours.features)])
    how = "" if theirs == ours else f"{theirs} positions to {ours}"
    return whole.reshape(shape), f"{how}, new tokens 0" if len(new) else how


def _by_place(table: np.ndarray, shape: Shape) -> np.ndarray:
    """[rows, columns, heads]; files keep square tables as [rows * columns, heads]."""
    side = round(math.sqrt(len(table)))
    if table.ndim == 2 and side**2 == len(table):
        table = table.reshape(side, side, -1)
    if table.ndim != len(shape) or table.shape[2:] != shape[2:]:
        raise Misfit("of another number of heads")
    return table


def fit_offsets(array: np.ndarray, shape: Shape, views: Views):
    """Another window."""
    del views
    array = _by_place(array, shape)
    windows = [[(side + 1) // 2 for side in s[:2]] for s in (array.shape, shape)]
    theirs, ours = ("x".join(map(str, window)) for window in windows)
    return resize_offsets(array, shape[:2]), f"window {theirs} to {ours}"


def fit_distances(array: np.ndarray, shape: Shape, views: Views):
    """Another window, of biases by |offset|: bicubic and antialiased, as timm's
    `resize_rel_pos_bias_table_levit`."""
    del views
    array = _by_place(array, shape)
    theirs, ours = ("x".join(map(str, s[:2])) for s in (array.shape, shape))
    return resize_grid(array, shape[:2]), f"window {theirs} to {ours}"


def fit_channels(kernel: np.ndarray, shape: Shape, views: Views):
    """Images of other channels."""
    del views
    if kernel.ndim != 4 or (*kernel.shape[:2], kernel.shape[3]) != (
        *shape[:2],
        shape[3],
    ):
        raise Misfit("of another width or kernel size")
    how = f"{kernel.shape[2]} channels to {shape[2]}"
    return adapt_channels(kernel, shape[2]), how


def fit_patches(kernel: np.ndarray, shape: Shape, views: Views):
    """Patches of another size, and images of other channels."""
    if kernel.ndim != 4 or kernel.shape[:2] == shape[:2]:
        return fit_channels(kernel, shape, views)
    theirs, ours = ("x".join(map(str, s[:2])) for s in (kernel.shape, shape))
    kernel, how = resize_patches(kernel, shape[:2]), f"patches of {theirs} to {ours}"
    if kernel.shape == shape:
        return kernel, how
    kernel, more = fit_channels(kernel, shape, views)
    return kernel, f"{how}, {more}"


RULES: Sequence[Rule] = (
    Rule(r"(^|/)(pos_embed(_\d+)?|positional_encoding)$", fit_positions),
    Rule(r"(^|/)relative_position_bias$", fit_offsets),
    Rule(r"(^|/)(absolute_position|offset)_bias$", fit_distances),
    Rule(r"^stem/proj/kernel$", fit_patches),
    Rule(r"^(stem/(conv_0|unit/conv)|stem_conv)/kernel$", fit_channels),
)


def fit(path: str, array: np.ndarray, shape: Shape, views: Views) -> Any:
    """(the array in `shape`, what was done).

    Args:
      path: of modules and the name.

    Raises:
      Misfit: no rule, or one that cannot.
    """
    for rule in RULES:
        if re.search(rule.pattern, path):
            return rule.fit(array, shape, views)
    raise Misfit("no rule for it")
