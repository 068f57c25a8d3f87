"""Reliability diagrams."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normjax.calibration.binned import Reliability, expected_error
from normjax.core.files import whole_file


def draw_reliability(parts: Mapping[str, Reliability], path: Path) -> None:
    """Accuracy against confidence, a picture a title, as PNG.

    Bars are the accuracy of equally wide bins, hatched what confidence is above or
    below it, narrow ones the share of the examples. A calibrated classifier has bars
    that end on the diagonal.

    Args:
      parts: what to draw, by title; equally wide bins.  path: of the PNG.

    Raises:
      OSError: it cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> from normjax import calibration
      >>> bins = calibration.reliability([0.6, 0.9, 0.95], [1, 0, 1], 5)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "reliability.png"
      ...     calibration.draw_reliability({"as trained": bins}, path)
      ...     path.read_bytes()[1:4]
      b'PNG'
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = {"figsize": (4.2 * len(parts), 4.2), "layout": "tight", "squeeze": False}
    figure, axes = pyplot.subplots(1, len(parts), **size)
    for axis, (title, bins) in zip(axes[0], parts.items(), strict=True):
        _draw(axis, bins)
        axis.set_title(f"{title}: ECE {100 * expected_error(bins):.2f} %", fontsize=10)
    axes[0][0].set_ylabel("accuracy, share of examples")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _draw(axis, bins: Reliability) -> None:
    full = bins.count > 0
    number = len(bins.count)
    middle, width = (np.arange(number)[full] + 0.5) / number, 1 / number
    accuracy, confidence = (
        v[full] / bins.count[full] for v in (bins.hits, bins.confidence)
    )
    share = bins.count[full] / bins.examples
    axis.bar(
        middle, accuracy, 0.9 * width, color="tab:blue", alpha=0.8, label="accuracy"
    )
    lower, height = np.minimum(accuracy, confidence), np.abs(accuracy - confidence)
    gap = {"facecolor": "none", "edgecolor": "tab:red", "hatch": "///"}
    axis.bar(middle, height, 0.9 * width, lower, label="gap to confidence", **gap)
    axis.bar(middle, share, 0.3 * width, color="0.2", label="share of examples")
    axis.plot([0, 1], [0, 1], "--", color="0.3", lw=1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
    axis.legend(fontsize=8, loc="upper left")
