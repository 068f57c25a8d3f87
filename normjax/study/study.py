"""The runs of a study, its table and its plot."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from normjax.analysis.layers import TITLES, by_depth, read_layers
from normjax.core.compiler import compiled_code_in
from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.files import exists, whole_file, write
from normjax.records import report
from normjax.records.json_files import read_json
from normjax.study.coordinates import draw_coordinates
from normjax.train.loop import train
from normjax.train.nonfinite import NonFiniteLoss

RESULT_FILE = "result.json"


class Study(NamedTuple):
    """What a study file's `get_study()` gives.

    Attributes:
      title: of the table.  rows: what the rows are called, "norm".
      runs: config of every cell (row, column); a pair that is left out stays empty.
      seeds: each cell is run with each of them.
      metric: of the final evaluation.  percent: whether it is a fraction.
      layers: a quantity of `train.diagnostics` to draw against depth, or "".
      axis: what the columns are numbers of, which are then drawn along a logarithmic
        axis, a line a row; empty: they are names.
      coordinates: configs by (row, width), of which a few updates show how much the
        outputs of the layers move, see `coordinates`; empty: none.
    """

    title: str
    rows: str
    runs: Mapping[tuple[str, str], ConfigDict]
    seeds: tuple[int, ...] = (0, 1, 2)
    metric: str = "top1"
    percent: bool = True
    layers: str = ""
    axis: str = ""
    coordinates: Mapping[tuple[str, int], ConfigDict] = MappingProxyType({})

    def shown(self, value: float) -> str:
        """The metric in tables."""
        return f"{100 * value:.2f}" if self.percent else f"{value:.4f}"


def run_study(
    study: Any, workdir: Path, only: re.Pattern[str] = re.compile("")
) -> Path:
    """Run what is not done yet, print the table, write `table.md` and `table.png`.

    A run that diverges is a result as well and is shown as such.

    Args:
      study: a mapping or Study with the fields of Study.
      workdir: gets one folder a run, `row/column/seed`.
      only: cells whose "row/column" it finds; the others are shown if they are done.

    Returns:
      the path of `table.md`.

    Raises:
      UserError: a config of the study is wrong.
    """
    study = study if isinstance(study, Study) else Study(**study)
    wanted = [cell for cell in study.runs if only.search("/".join(cell))]
    if not wanted:
        raise UserError(
            f"--only={only.pattern!r} leaves none of {len(study.runs)} cells"
        )
    if study.coordinates:
        workdir.mkdir(parents=True, exist_ok=True)
        plot = workdir / "coordinates.png"
        draw_coordinates(study.coordinates, plot)
        console.print(f"coordinates in {plot}")
    # A whole table first, then the next seed.
    todo = [(cell, seed) for seed in study.seeds for cell in wanted]
    # Seeds differ in data only: the second compilation of a step is read from disk.
    with compiled_code_in(workdir / "cache"):
        for i, (cell, seed) in enumerate(todo, 1):
            folder = workdir / "/".join(cell) / str(seed)
            result = _run_once(study.runs[cell], seed, folder)
            shown = result.get("error") or study.shown(result[study.metric])
            name = f"{'/'.join(cell)} seed {seed}"
            console.print(f"{i}/{len(todo)}  {name}: {shown}")
    return _summarize(study, workdir)


def _run_once(config: ConfigDict, seed: int, folder: Path) -> dict[str, Any]:
    """The result of one run; read where it is done already."""
    path = folder / RESULT_FILE
    if exists(path):
        return read_json(path)
    config = config.copy_and_resolve_references()
    config.seed = seed
    try:
        console.quiet = True
        result: dict[str, Any] | None = train(config, folder)
    except NonFiniteLoss as error:
        result = {"error": f"diverged: {str(error).split(' (')[0]}"}
    finally:
        console.quiet = False
        # Hundreds of compiled programs would stay in memory.
        jax.clear_caches()
    if result is None:
        raise UserError("stopped by a signal; the same command goes on")
    write(path, json.dumps(result).encode())
    return result


def _summarize(study: Study, workdir: Path) -> Path:
    rows = list(dict.fromkeys(row for row, _ in study.runs))
    columns = list(dict.fromkeys(column for _, column in study.runs))
    results = {cell: _results(study, workdir, cell) for cell in study.runs}
    table = [
        (row, *(_cell(results.get((row, column)), study) for column in columns))
        for row in rows
    ]
    names = (study.rows, *columns)
    report.table(study.title, names, table)
    lines = [_markdown(names), _markdown("---" for _ in names), *map(_markdown, table)]
    path = workdir / "table.md"
    write(path, ("\n".join(lines) + "\n").encode())
    plot = _plot_lines if study.axis else _plot
    plot(study, rows, columns, results, workdir / "table.png")
    console.print(f"table in {path}, plot in {workdir / 'table.png'}")
    if study.layers:
        plot = workdir / f"{study.layers}.png"
        _plot_layers(study, rows, columns, workdir, plot)
        console.print(f"{study.layers} in {plot}")
    return path


def _results(study: Study, workdir: Path, cell: tuple[str, str]) -> list[float]:
    """The metric of every seed that is done; NaN where it diverged."""
    paths = [workdir / "/".join(cell) / str(s) / RESULT_FILE for s in study.seeds]
    done = [read_json(path) for path in paths if exists(path)]
    return [result.get(study.metric, math.nan) for result in done]


def _cell(values: list[float] | None, study: Study) -> str:
    if not values:
        return "-"
    diverged = sum(map(math.isnan, values))
    if diverged:
        return f"diverged ({diverged} of {len(values)})"
    parts = (np.mean, np.std) if len(study.seeds) > 1 else (np.mean,)
    text = " ± ".join(study.shown(float(f(values))) for f in parts)
    lacking = len(study.seeds) - len(values)
    return f"{text} ({len(values)} seeds)" if lacking else text


def _markdown(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plot(study, rows, columns, results, path: Path) -> None:
    """Every run a dot, one line a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    factor, unit = (100, ", %") if study.percent else (1, "")
    height = 1.2 + 0.28 * len(rows)
    figure, axes = pyplot.subplots(figsize=(7, height), layout="tight")
    for i, column in enumerate(columns):
        points = [
            (factor * value, len(rows) - 1 - y + 0.16 * (i - (len(columns) - 1) / 2))
            for y, row in enumerate(rows)
            for value in results.get((row, column), [])
            if math.isfinite(value)
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", ms=4, alpha=0.7, label=column)
    axes.set_yticks(range(len(rows)), rows[::-1])
    axes.set_xlabel(study.metric + unit)
    axes.set_title(study.title)
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _plot_lines(study, rows, columns, results, path: Path) -> None:
    """The mean of each row against the columns, which are numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    factor, unit = (100, ", %") if study.percent else (1, "")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="tight")
    for row in rows:
        points = [
            (float(column), factor * float(np.mean(values)))
            for column in columns
            if (values := results.get((row, column)))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", ms=4, label=row)
    axes.set_xscale("log")
    axes.set_xlabel(study.axis)
    axes.set_ylabel(study.metric + unit)
    axes.set_title(study.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _plot_layers(study, rows, columns, workdir: Path, path: Path) -> None:
    """The last record of every cell's first seed against depth; one axis a column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = {"figsize": (5 * len(columns), 4), "layout": "tight", "squeeze": False}
    figure, axes = pyplot.subplots(1, len(columns), sharey=True, **size)
    for axis, column in zip(axes[0], columns, strict=True):
        for row in rows:
            records = read_layers(workdir / row / column / str(study.seeds[0]))
            if records and study.layers in records[-1]:
                _, values = by_depth(records[-1][study.layers])
                axis.plot(values, "o-", ms=3, label=row)
        axis.set_title(column)
        axis.set_xlabel("layer")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0][0].set_ylabel(TITLES[study.layers])
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
