"""What a person sees: progress, tables, curves; and the files behind them."""

import contextlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from normjax.core.console import console
from normjax.core.files import whole_file
from normjax.core.lines import open_lines, read_lines
from normjax.core.paths import workdir_path
from normjax.records.events import Arrays, open_events
from normjax.records.wandb_run import WandbRun
from normjax.tasks.base import Column

METRICS_FILE = "metrics.jsonl"


class NoLog:
    """The log of a process that writes none."""

    def write(self, step: int, scalars: Any) -> None:
        pass

    def show(self, step: int, images: Any, histograms: Any) -> None:
        pass

    def close(self) -> None:
        pass


class MetricLog:
    """Scalars by step, as JSON lines and as TensorBoard events in the workdir.

    A resumed run continues both files; lines past the step it resumes from are dropped,
    so that each step stands there once. In a bucket a process that is killed loses at
    most what it wrote last.

    Args:
      also: gets the same scalars.
    """

    def __init__(self, workdir: Path, resumed_step: int, also: WandbRun | None = None):
        kept = [r for r in read_metrics(workdir) if r["step"] <= resumed_step]
        self._events, self._also = open_events(workdir, resumed_step), also
        path = workdir_path(workdir) / METRICS_FILE
        self._lines = open_lines(path, kept, self._add)
        self._closed = False

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record `scalars` at `step`; NaN is no measurement, and no JSON."""
        measured = {k: v for k, v in scalars.items() if not math.isnan(v)}
        self._lines.write({"step": step, **measured})

    def show(self, step: int, images: Arrays, histograms: Arrays) -> None:
        """Show images, uint8 [H, W, C], and histograms of values in TensorBoard."""
        self._events.show(step, images, histograms)

    def close(self) -> None:
        """Flush and close both files."""
        if not self._closed:
            self._closed = True
            self._lines.close()
            self._events.close()
            if self._also:
                self._also.close()

    def _add(self, record: Mapping[str, Any]) -> None:
        self._events.add(record)
        if self._also:
            self._also.add(record)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All records of the metrics file; a half-written last line is left out."""
    return read_lines(workdir_path(workdir) / METRICS_FILE)


class ProgressBar:
    """Steps done, loss, learning rate, examples a second and time left.

    Live on a terminal; elsewhere one line every `quiet_seconds`.
    """

    quiet_seconds = 10.0

    def __init__(self, total_steps: int, start_step: int):
        self._total, self._start = total_steps, start_step
        self._begin = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, note="")
        self._bar.update(self._task, completed=start_step)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show the state after `step` updates."""
        note = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        self._bar.update(self._task, completed=step, note=note)
        now = time.monotonic()
        if not console.is_terminal and now - self._last_line > self.quiet_seconds:
            self._last_line = now
            rate = (step - self._start) / (now - self._begin)
            left = (self._total - step) / max(rate, 1e-9)
            console.print(f"step {step}/{self._total}  {note}  {left:.0f} s left")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers are aligned right."""
    view = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows)
        view.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        view.add_row(*(_cell(value) for value in row))
    console.print(view)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextlib.contextmanager
def warnings_in_lines() -> Iterator[None]:
    """Warnings of what is called meanwhile, a line each, without where in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        console.print(f"warning: {warning.message}")


def score_table(
    title: str,
    first: str,
    columns: Sequence[Column],
    rows: Mapping[str, Mapping[str, float]],
) -> None:
    """Print scores: one row a name, the name under `first`."""
    cells = [(n, *(c.show(s[c.score]) for c in columns)) for n, s in rows.items()]
    table(title, (first, *(column.title for column in columns)), cells)


def plot_curves(
    workdir: Path, curves: Sequence[tuple[str, bool, Sequence[str]]]
) -> Path:
    """Draw logged scalars over the steps into `curves.png` of the workdir.

    Args:
      curves: the axes, (label, logarithmic, names of the scalars).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(workdir)
    size = (5 * len(curves), 4)
    figure, drawn = pyplot.subplots(1, len(curves), figsize=size, layout="tight")
    for axes, (label, logarithmic, names) in zip(drawn, curves, strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in records if name in r]
            points = [p for p in points if math.isfinite(p[1])]
            if points:
                marker = "o" if name.startswith("eval") else None
                axes.plot(*zip(*points, strict=True), label=name, marker=marker, ms=3)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_yscale("log" if logarithmic else "linear")
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend()
    path = workdir_path(workdir) / "curves.png"
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
    return path
