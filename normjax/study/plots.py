"""The plots of a study."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normjax.analysis.layers import TITLES, by_depth, read_layers
from normjax.core.files import whole_file
from normjax.records.report import read_metrics

Results = Mapping[tuple[str, str], Sequence[float]]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _subplots(*shape: int, **options: Any) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(*shape, layout="tight", **options)


def plot_dots(
    results: Results,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    path: Path,
) -> None:
    """Every run a dot, one line a row, a colour a column.

    Args:
      results: of every seed, by cell; what is not finite is left out.
    """
    figure, axes = _subplots(figsize=(7, 1.2 + 0.28 * len(rows)))
    for i, column in enumerate(columns):
        points = [
            (value, len(rows) - 1 - y + 0.16 * (i - (len(columns) - 1) / 2))
            for y, row in enumerate(rows)
            for value in results.get((row, column), [])
            if math.isfinite(value)
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", ms=4, alpha=0.7, label=column)
    axes.set_yticks(range(len(rows)), rows[::-1])
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    if len(columns) > 1:
        axes.legend(fontsize=8)
    _save(figure, path)


def plot_lines(
    results: Results,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    axis: str,
    path: Path,
) -> None:
    """The mean of each row against the columns, which are numbers named by `axis`."""
    figure, axes = _subplots(figsize=(7, 4))
    for row in rows:
        points = [
            (float(column), float(np.mean(values)))
            for column in columns
            if (values := results.get((row, column)))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", ms=4, label=row)
    axes.set_xscale("log")
    axes.set_xlabel(axis)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_layers(
    quantity: str,
    rows: Sequence[str],
    columns: Sequence[str],
    folder: Callable[[str, str], Path],
    path: Path,
) -> None:
    """The last record of every run against depth; one axis a column.

    Args:
      quantity: of `train.diagnostics`.  folder: of the run of (row, column).
    """
    size = {"figsize": (5 * len(columns), 4), "squeeze": False}
    figure, axes = _subplots(1, len(columns), sharey=True, **size)
    for axis, column in zip(axes[0], columns, strict=True):
        for row in rows:
            records = read_layers(folder(row, column))
            if records and quantity in records[-1]:
                _, values = by_depth(records[-1][quantity])
                axis.plot(values, "o-", ms=3, label=row)
        axis.set_title(column)
        axis.set_xlabel("layer")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0][0].set_ylabel(TITLES[quantity])
    _save(figure, path)


def plot_curves(
    metric: str,
    rows: Sequence[str],
    columns: Sequence[str],
    folders: Callable[[str, str], Sequence[Path]],
    path: Path,
) -> None:
    """The mean over seeds of a metric of the log against steps; one axis a column.

    Args:
      metric: of metrics.jsonl, "eval_nll".  folders: of the runs of (row, column), of
        which some may not be there.
    """
    size = {"figsize": (5 * len(columns), 4.5), "squeeze": False}
    figure, axes = _subplots(1, len(columns), **size)
    styles = ("-", "--", ":")
    for axis, column in zip(axes[0], columns, strict=True):
        for i, row in enumerate(rows):
            values: dict[int, list[float]] = {}
            for folder in folders(row, column):
                for record in read_metrics(folder):
                    if metric in record:
                        values.setdefault(record["step"], []).append(record[metric])
            points = [(step, np.mean(found)) for step, found in sorted(values.items())]
            if points:
                # Ten colours are told apart, and three kinds of lines.
                style = styles[i // 10 % len(styles)]
                axis.plot(*zip(*points, strict=True), style, label=row)
        axis.set_title(column)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0][0].set_ylabel(metric)
    _save(figure, path)
