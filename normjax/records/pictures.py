"""Pictures of what a classifier answers, as arrays for TensorBoard."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COLUMNS = 4
NAMED, COUNTED = 40, 20
"""Classes up to which a confusion matrix names them, and says numbers."""

RIGHT, WRONG = "#1a7f37", "#cf222e"


def guesses(
    images: np.ndarray,
    truths: Sequence[str],
    answers: Sequence[str],
    probabilities: Sequence[float],
) -> np.ndarray:
    """Images, and above each what is answered and how surely; if wrong, what is true.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      uint8 [H', W', 3].
    """
    rows = -(-len(images) // COLUMNS)
    figure = _figure(2.2 * COLUMNS, 2.5 * rows)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    found = zip(axes, images, truths, answers, probabilities, strict=False)
    for axis, image, truth, answer, probability in found:
        gray = image.shape[-1] == 1
        limits = {"vmin": 0, "vmax": 255, "cmap": "gray"} if gray else {}
        axis.imshow(image[..., 0] if gray else image, **limits)
        right = truth == answer
        text = f"{_short(answer)} ({100 * probability:.0f} %)"
        text += "" if right else f"\nis {_short(truth)}"
        color = RIGHT if right else WRONG
        axis.set_title(text, color=color, fontsize=9, parse_math=False)
    return _drawn(figure)


def confusion(
    labels: np.ndarray, answers: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """The confusion matrix: a row a true class, a column an answer.

    A cell is as dark as its share of the row; up to `COUNTED` classes it says how many
    there are.

    Args:
      labels, answers: int [N].  names: of the classes.

    Returns:
      uint8 [H', W', 3].
    """
    size = len(names)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (labels, answers), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3.5 + 0.35 * min(size, COUNTED)
    figure = _figure(side + 0.8, side)
    axis = figure.subplots()
    shown = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(shown, ax=axis, label="share of the class", fraction=0.046)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")
    if size <= NAMED:
        style: Any = {"fontsize": 8, "parse_math": False}
        short = list(map(_short, names))
        axis.set_xticks(range(size), short, rotation=90, **style)
        axis.set_yticks(range(size), short, **style)
    for row, column in np.argwhere(counts) if size <= COUNTED else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        middle = {"ha": "center", "va": "center", "fontsize": 7}
        axis.text(column, row, f"{counts[row, column]:,}", color=color, **middle)
    return _drawn(figure)


def _figure(width: float, height: float) -> Any:
    # Not pyplot's, which keeps figures and chooses a window.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100)


def _drawn(figure: Any) -> np.ndarray:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names in letters that its font lacks
        figure.savefig(file, format="png", bbox_inches="tight")
    return np.asarray(Image.open(file).convert("RGB"))


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
