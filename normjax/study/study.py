"""A study: its cells, what is claimed of them, its table and its plots."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from normjax.core.compiler import compiled_code_in
from normjax.core.console import console
from normjax.core.errors import UserError
from normjax.core.files import exists, write
from normjax.records import report
from normjax.records.json_files import read_json
from normjax.study.claims import (
    Cell,
    Claim,
    Finding,
    Sample,
    judge,
    sample_of,
    values_of,
)
from normjax.study.coordinates import draw_coordinates
from normjax.study.pages import (
    Block,
    Heading,
    Paragraph,
    Picture,
    Table,
    markdown_table,
    write_pages,
)
from normjax.study.plots import plot_curves, plot_dots, plot_layers, plot_lines
from normjax.study.runs import (
    RESULT_FILE,
    STEPS_FILE,
    WHOLE,
    Run,
    Share,
    once,
    part_of_steps,
    shortened,
)

CLAIMS_HEAD = ("claim", "source", "published", "measured", "verdict")


class Study(NamedTuple):
    """What a study file's `get_study()` gives.

    Attributes:
      title: of the table.  rows: what the rows are called, "norm".
      runs: of every cell (row, column) the config, or a `Measure`; a pair that is left
        out stays empty.
      seeds: each cell is run with each of them.
      metric: of the final evaluation.
      percent: whether it is a fraction, of which a run that diverged has 0; it has
        infinitely much of anything else.
      layers: a quantity of `train.diagnostics` to draw against depth, or "".
      curves: a metric of the log, "eval_nll", to draw against steps, or "".
      axis: what the columns are numbers of, which are then drawn along a logarithmic
        axis, a line a row; empty: they are names.
      coordinates: configs by (row, width), of which a few updates show how much the
        outputs of the layers move, see `coordinates`; empty: none.
      claims: of papers, about the cells.
    """

    title: str
    rows: str
    runs: Mapping[Cell, Run]
    seeds: tuple[int, ...] = (0, 1, 2)
    metric: str = "top1"
    percent: bool = True
    layers: str = ""
    curves: str = ""
    axis: str = ""
    coordinates: Mapping[tuple[str, int], ConfigDict] = MappingProxyType({})
    claims: tuple[Claim, ...] = ()

    def shown(self, value: float, metric: str = "") -> str:
        """A value of a metric, or of the study's own, in tables."""
        if self.percent and metric in ("", self.metric):
            return f"{100 * value:.2f}"
        return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.2e}"

    @property
    def worst(self) -> float:
        """What a run that diverged counts as."""
        return 0.0 if self.percent else math.inf


class Outcome(NamedTuple):
    """What a study found.

    Attributes:
      page: path of its report, `report.md`.
      findings: of its claims.  minutes: that its runs took, all together.
    """

    page: Path
    findings: list[Finding]
    minutes: float


def as_study(given: Any) -> Study:
    """A study, or a mapping with the fields of one, as a study."""
    return given if isinstance(given, Study) else Study(**given)


def wanted_cells(study: Study, only: re.Pattern[str]) -> list[Cell]:
    """The cells whose "row/column" `only` finds.

    Raises:
      UserError: none.
    """
    wanted = [cell for cell in study.runs if only.search("/".join(cell))]
    if not wanted:
        raise UserError(
            f"--only={only.pattern!r} leaves none of {len(study.runs)} cells"
        )
    return wanted


def prepare(study: Study, workdir: Path, runs: int, minutes: float = math.inf) -> None:
    """What is done once, before the runs are shared out among processes.

    Draws the coordinates, and finds by a pilot how many steps a budget leaves.

    Args:
      runs: of one process, with one seed.  minutes: the budget.
    """
    if study.coordinates:
        workdir.mkdir(parents=True, exist_ok=True)
        plot = workdir / "coordinates.png"
        draw_coordinates(study.coordinates, plot)
        console.print(f"coordinates in {plot}")
    if math.isfinite(minutes):
        first = next(iter(study.runs.values()))
        with compiled_code_in(workdir / "cache"):
            part_of_steps(first, runs, minutes, workdir)


def run_cells(
    study: Study,
    workdir: Path,
    cells: Sequence[Cell],
    share: Share = WHOLE,
    minutes: float = math.inf,
) -> None:
    """Run what is not done yet: a whole table first, then the next seed.

    A run that diverges is a result as well.

    Args:
      workdir: gets one folder a run, `row/column/seed`.
      share: of the runs, for this process.
      minutes: no further seed is begun that would end later than this from now, to
        judge by the last one; the first seed is always run.

    Raises:
      UserError: a config of the study is wrong.
    """
    began, part = time.monotonic(), _part(workdir)
    cells = cells[share.index :: share.of]
    total = len(study.seeds) * len(cells)
    # Seeds differ in data alone: the second compilation of a step is read from disk.
    with compiled_code_in(workdir / "cache"):
        for i, seed in enumerate(study.seeds):
            seconds = 0.0
            for j, cell in enumerate(cells, 1):
                folder = workdir / "/".join(cell) / str(seed)
                result = once(shortened(study.runs[cell], part), seed, folder)
                value = result.get(study.metric)
                shown = "done" if value is None else study.shown(value)
                shown = result.get("error", shown)
                seconds += result.get("seconds", 0.0)
                name = f"{'/'.join(cell)} seed {seed}"
                console.print(f"{i * len(cells) + j}/{total}  {name}: {shown}")
            if time.monotonic() - began + seconds > 60 * minutes:
                return


def summarize(study: Study, workdir: Path) -> Outcome:
    """Print the table and the verdicts of what is done, and write them with the plots.

    Writes `table.md`, `table.png`, and the whole as `report.md` and `report.html`.
    """
    rows = list(dict.fromkeys(row for row, _ in study.runs))
    columns = list(dict.fromkeys(column for _, column in study.runs))
    results = {cell: _results(study, workdir, cell) for cell in study.runs}
    values = {cell: values_of(done, study.metric) for cell, done in results.items()}
    table = [
        (row, *(_cell(values.get((row, column)), study) for column in columns))
        for row in rows
    ]
    names = (study.rows, *columns)
    report.table(study.title, names, table)
    write(workdir / "table.md", (markdown_table(names, table) + "\n").encode())
    pictures = [
        Picture(path, text)
        for path, text in _plots(study, rows, columns, values, workdir)
    ]
    findings = [
        judge(claim, results, study.metric, study.worst) for claim in study.claims
    ]
    found = [finding_row(study, finding) for finding in findings]
    if found:
        report.table("claims", CLAIMS_HEAD, found)
    minutes = sum(r.get("seconds", 0.0) for done in results.values() for r in done) / 60
    blocks: list[Block] = [Heading(study.title)]
    if found:
        blocks.append(Table(CLAIMS_HEAD, found))
    part = _part(workdir)
    steps = f", {part:g} of their steps" if part < 1 else ""
    count = sum(map(len, results.values()))
    blocks += [
        Table(names, table),
        Paragraph(f"{count} runs{steps}, {minutes:.1f} minutes."),
        *pictures,
    ]
    page = workdir / "report.md"
    write_pages(blocks, page)
    console.print(f"report in {page} and {page.with_suffix('.html')}")
    return Outcome(page, findings, minutes)


def finding_row(study: Study, finding: Finding) -> tuple[str, ...]:
    """A claim, its paper, its figures, ours and the verdict."""
    claim = finding.claim

    def side(sample: Sample) -> str:
        if not sample.count:
            return "nothing"
        if math.isinf(sample.mean):
            return "diverged"
        text = study.shown(sample.mean, claim.metric)
        if sample.count == 1:
            return text
        return f"{text} ± {study.shown(sample.spread, claim.metric)}"

    measured = f"{side(finding.more)} against {side(finding.less)}"
    return (
        claim.statement,
        claim.source,
        claim.published,
        f"{claim.metric or study.metric}: {measured}",
        finding.verdict,
    )


def _part(workdir: Path) -> float:
    path = workdir / STEPS_FILE
    return read_json(path)["part"] if exists(path) else 1.0


def _results(study: Study, workdir: Path, cell: Cell) -> list[dict[str, float]]:
    """What every seed gave that is done."""
    paths = [workdir / "/".join(cell) / str(s) / RESULT_FILE for s in study.seeds]
    return [read_json(path) for path in paths if exists(path)]


def _cell(values: list[float] | None, study: Study) -> str:
    if not values:
        return "-"
    diverged = sum(map(math.isnan, values))
    if diverged:
        return f"diverged ({diverged} of {len(values)})"
    sample = sample_of(values, study.worst)
    text = study.shown(sample.mean)
    if len(study.seeds) > 1:
        text += f" ± {study.shown(sample.spread)}"
    lacking = len(study.seeds) - len(values)
    return f"{text} ({len(values)} seeds)" if lacking else text


def _plots(study, rows, columns, values, workdir: Path) -> list[tuple[Path, str]]:
    """The plots of a study, and what they show."""
    factor, unit = (100, ", %") if study.percent else (1, "")
    scaled = {cell: [factor * v for v in found] for cell, found in values.items()}
    label, path = study.metric + unit, workdir / "table.png"
    if study.axis:
        plot_lines(scaled, rows, columns, label, study.axis, path)
    else:
        plot_dots(scaled, rows, columns, label, path)
    plots = [(path, study.title)]
    if study.layers:
        path = workdir / f"{study.layers}.png"
        first = str(study.seeds[0])
        plot_layers(
            study.layers, rows, columns, lambda r, c: workdir / r / c / first, path
        )
        plots.append((path, f"{study.layers} by depth"))
    if study.curves:
        path = workdir / f"{study.curves}.png"

        def folders(row: str, column: str) -> list[Path]:
            return [workdir / row / column / str(seed) for seed in study.seeds]

        plot_curves(study.curves, rows, columns, folders, path)
        plots.append((path, f"{study.curves} by step"))
    if study.coordinates:
        plots.append((workdir / "coordinates.png", "coordinate check"))
    return plots
