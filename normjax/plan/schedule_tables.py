"""Schedules as people read them: tables by part and by instruction, and a chart."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from normjax.core.files import whole_file
from normjax.plan.bundles import UNITS
from normjax.plan.parts import PARTS, scopes_of
from normjax.plan.schedule import Cost, Program, Schedule, schedules
from normjax.plan.tables import in_units
from normjax.records.report import table

LARGEST = 12
"""Rows of the table of instructions."""

NOTE = (
    "Cycles by the compiler's static schedule: the wait for a kernel's first operands, "
    "the host and copies beside kernels are not in them. Compare ratios."
)


def watched(programs: Mapping[str, Program], topology: str) -> dict[str, Schedule]:
    """`schedules`, with a progress bar on stderr.

    Raises:
      UserError: as `schedules`.
    """
    found, count = schedules(programs, topology), len(programs)
    text, bar = f"compiling for {topology}", Console(stderr=True)
    return dict(track(found, text, count, console=bar))


def show_schedules(found: Mapping[str, Schedule]) -> None:
    """Print where the cycles of every program go."""
    for name, each in found.items():
        chip = each.chip
        title = f"{name} on {chip.name}: {_millions(each.cycles)} million cycles"
        rate = f"{1e3 * each.seconds:.3g} ms, MFU by schedule {100 * each.mfu:.0f} %"
        columns = ("part", "million cycles", "share", "held up by")
        table(f"{title}, {rate}", columns, _parts(each))
        columns = ("instructions", "runs", "million cycles", "share", "part", "held up")
        table(f"{name}: the largest", (*columns, *_short(UNITS)), _instructions(each))
        if each.unknown_loops:
            print(
                f"warning: {each.unknown_loops} loops of {name} have an unknown number "
                "of turns; each counts once, or as what it stores if that is more"
            )
    print(NOTE)


def show_costs(found: Mapping[str, Schedule]) -> None:
    """Print the memory and the cycles of every program in one table."""
    first = next(iter(found.values()))
    rows = [
        (
            name,
            in_units(each.temporaries),
            _millions(each.cycles),
            f"{each.cycles / first.cycles:.3f}",
        )
        for name, each in found.items()
    ]
    columns = ("", "activations, temporaries", "million cycles", "/ first")
    table(f"of a device, {first.chip.name}", columns, rows)
    print(NOTE)


def save_chart(found: Mapping[str, Schedule], path: Path) -> None:
    """A bar a program, its parts in colours, in million cycles, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        figsize=(9, 1.6 + 0.5 * len(found)), layout="constrained"
    )
    colors = matplotlib.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    names = list(found)
    left = [0.0] * len(names)
    for part, color in zip(PARTS, colors, strict=True):
        widths = [found[name].by_part().get(part, 0.0) / 1e6 for name in names]
        if any(widths):
            axes.barh(names, widths, left=left, color=color, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, name in enumerate(names):
        text = f" {left[place]:.3g} (MFU {100 * found[name].mfu:.0f} %)"
        axes.text(left[place], place, text, va="center")
    axes.margins(x=0.2)
    axes.invert_yaxis()
    chip = next(iter(found.values())).chip.name
    axes.set_xlabel(f"million cycles on {chip}, by the compiler's schedule")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=5, frameon=False)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    pyplot.close(figure)


def _parts(each: Schedule) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for part, cycles in sorted(each.by_part().items(), key=lambda item: -item[1]):
        limits: dict[str, float] = {}
        for cost in each.costs:
            if cost.part == part:
                limits[cost.limit] = limits.get(cost.limit, 0.0) + cost.cycles
        most = max(limits, key=limits.__getitem__)
        share = f"{most} ({100 * limits[most] / cycles:.0f} %)"
        rows.append((part, _millions(cycles), _percent(cycles / each.cycles), share))
    return rows


def _instructions(each: Schedule) -> list[tuple[Any, ...]]:
    """Instructions that differ in numbers alone, together."""
    groups: dict[tuple[str, str, str], list[Cost]] = {}
    for cost in filter(lambda cost: cost.cycles, each.costs):
        path = re.sub(r"\d+", "*", cost.path)
        groups.setdefault((path, cost.part, cost.limit), []).append(cost)
    total = {key: sum(cost.cycles for cost in costs) for key, costs in groups.items()}
    rows: list[tuple[Any, ...]] = []
    for key in sorted(groups, key=lambda key: -total[key])[:LARGEST]:
        path, part, limit = key
        costs, cycles = groups[key], total[key]
        first = max(costs, key=lambda cost: cost.cycles)
        busy = [_percent(first.busy.get(unit, 0.0)) for unit in UNITS]
        runs = sum(cost.times for cost in costs)
        share = _percent(cycles / each.cycles)
        rows.append(
            (_readable(path), runs, _millions(cycles), share, part, limit, *busy)
        )
    return rows


def _readable(path: str) -> str:
    return "/".join(scopes_of(path)[-4:]) or path


def _short(units: Mapping[str, str]) -> list[str]:
    return [unit.removeprefix("V") for unit in units]


def _millions(cycles: float) -> str:
    return f"{cycles / 1e6:.3f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
