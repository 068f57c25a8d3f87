"""Plans as people read them."""

from collections.abc import Sequence

from normjax.devices.mesh import STAGE
from normjax.plan.plan import Plan, Step
from normjax.plan.roofline import Roofline
from normjax.records.report import table

MEMORY = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "average": "average of the parameters",
    "statistics": "statistics and counters",
    "batch": "batch",
    "padding": "padding",
    "results": "results",
    "temporaries": "activations, temporaries",
    "program": "program",
}

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

NOTES = (
    "FLOPs are those of matrix products and convolutions, recomputation included. "
    "Times are bounds from below: they overlap perfectly, and each runs at the peak."
)


def show(plan: Plan) -> None:
    """Print all of a plan."""
    steps = plan.steps
    sizes = {axis: size for axis, size in plan.mesh.items() if size > 1} or plan.mesh
    mesh = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    devices = f"{plan.count} x {plan.kind}"
    title = f"{plan.name}: {devices}, mesh {mesh}, {plan.batch_size} rows a step"
    columns = ("", *(f"{name} step" for name in steps))
    table(title, columns, _rows(plan, list(steps.values())))
    if plan.units_per_second is not None and plan.mfu is not None:
        rate = f"at most {plan.units_per_second:,.0f} {plan.units} a second"
        print(f"Training: {rate}, MFU at most {100 * plan.mfu:.0f} %.")
    if plan.bubble:
        parts = f"{plan.mesh[STAGE]} stages, {plan.microbatches} microbatches"
        print(f"Bubble: {100 * plan.bubble:.0f} % of a training step ({parts}).")
    print(NOTES)


def show_sweep(rows: Sequence[tuple[str, Plan | str]]) -> None:
    """Print one row a topology: its plan, or why there is none."""
    first: tuple[float, int] | None = None
    cells = []
    for name, plan in rows:
        if isinstance(plan, str):
            cells.append((name, *[""] * 6, plan))
            continue
        step, rate = plan.steps["train"], plan.units_per_second
        if rate and first is None:
            first = rate, plan.count
        scaling = rate / first[0] * first[1] / plan.count if rate and first else None
        cells.append(
            (
                name,
                str(plan.count),
                in_units(step.memory.total),
                _milliseconds(step.bound),
                _percent(plan.mfu),
                f"{rate:,.0f}" if rate else "",
                _percent(scaling),
                _misfit(step) or (step.bound.limit if step.bound else ""),
            )
        )
    unit = next((plan.units for _, plan in rows if isinstance(plan, Plan)), "units")
    columns = (
        "topology",
        "devices",
        "memory of each",
        "ms a step, at least",
        "MFU at most",
    )
    more = (f"{unit}/s at most", "efficiency", "bound by")
    table("the same batch on more devices", (*columns, *more), cells)
    print(NOTES)


def misfit(plan: Plan) -> str:
    """By how much a plan does not fit; "" if it does."""
    lines = [f"the {n} step {_misfit(step)}" for n, step in plan.steps.items()]
    return next(
        (x for x, s in zip(lines, plan.steps.values(), strict=True) if s.excess > 0), ""
    )


def _misfit(step: Step) -> str:
    if step.excess <= 0:
        return ""
    need, have = step.memory.total, step.available or 0
    return (
        f"needs {in_units(need)} a device, {in_units(step.excess)} more than the "
        f"{in_units(have)} that it may have"
    )


def _rows(plan: Plan, steps: Sequence[Step]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []

    def add(title: str, cells: Sequence[str]) -> None:
        if any(cells):
            rows.append((title, *cells))

    for field, title in MEMORY.items():
        sizes = [getattr(step.memory, field) for step in steps]
        add(title, [in_units(size) if size else "" for size in sizes])
    add("memory of a device", [in_units(step.memory.total) for step in steps])
    have = [step.available for step in steps]
    add("it may have", [in_units(size) if size else "" for size in have])
    add("TFLOPs a step", [f"{step.flops / 1e12:.4g}" for step in steps])
    add("TFLOPs a device", [f"{s.flops / plan.count / 1e12:.4g}" for s in steps])
    moved = [step.traffic for step in steps]
    add("through memory", [in_units(m.memory) if m else "" for m in moved])
    kinds = sorted({kind for m in moved if m for kind in m.collectives})
    for kind in kinds:
        sizes = [m.collectives.get(kind, 0) if m else 0 for m in moved]
        add(kind, [in_units(size) if size else "" for size in sizes])
    for field in Roofline._fields:
        times = [getattr(step.bound, field) if step.bound else None for step in steps]
        add(f"ms: {field}", ["" if t is None else _three(1e3 * t) for t in times])
    add("ms a step, at least", [_milliseconds(step.bound) for step in steps])
    add("bound by", [step.bound.limit if step.bound else "" for step in steps])
    loops = [m.unknown_loops if m else 0 for m in moved]
    add("loops counted once", [str(count) if count else "" for count in loops])
    return rows


def in_units(size: float) -> str:
    """Bytes in three digits and a unit."""
    units = [unit for unit in UNITS if size >= UNITS[unit]]
    unit = units[-1] if units else "B"
    return f"{_three(size / UNITS[unit])} {unit}"


def _milliseconds(bound: Roofline | None) -> str:
    return _three(1e3 * bound.seconds) if bound else ""


def _three(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f} %"
