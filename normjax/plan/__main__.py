"""What a run would need and take, compiled for machines that need not be there.

python -m normjax.plan --config=FILE[:ARGUMENTS] --topology=v5e:4x4
    [--mesh=data=4,fsdp=4] [--sweep=v5e:2x2,v5e:4x4] [--vocab_size=N]
    [--config.field=value ...]
python -m normjax.plan --schedule --config=FILE[:ARGUMENTS] --topology=v5e:2x2
    [--plot=schedule.png] [--remat] [--mesh=...] [--config.field=value ...]

The second form says in which cycles the compiler's schedule puts the work of a TPU: by
part of the model, by instruction, and as a chart. With --remat it compares, in one
table and the chart, the training step with all that `config.model.remat` may be.

Topologies: v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:4x4 (with libtpu, without a TPU), cpu:8,
gpu. No data is read: TFDS sets are what TFDS says of them, and --vocab_size stands for
a tokenizer's file that is not there. Exit codes: 0 it fits, 1 it does not (one line
says by how much and what would), 2 wrong input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from normjax.cli.flags import define_config, parse_flags
from normjax.cli.main import EXIT_FAILED, run
from normjax.core.errors import UserError


def plan_command(argv: Sequence[str]) -> int:
    """See the head of the file."""

    def define(values: flags.FlagValues) -> None:
        define_config(values)
        known: Any = {"flag_values": values}
        flags.DEFINE_string("topology", None, "devices, such as v5e:4x4", **known)
        flags.DEFINE_list("sweep", [], "topologies to compare", **known)
        flags.DEFINE_string("mesh", None, "such as data=4,fsdp=4", **known)
        sizes = {"lower_bound": 1, **known}
        flags.DEFINE_bool("schedule", False, "cycles of a TPU", **known)
        flags.DEFINE_bool("remat", False, "compare what blocks keep", **known)
        flags.DEFINE_string("plot", "schedule.png", "chart of --schedule", **known)
        flags.DEFINE_integer("vocab_size", None, "tokens of the tokenizer", **sizes)

    given = parse_flags(argv, define, __doc__, overrides=True)
    values, config = given.flags, given.config()
    if config.task != "language_modeling":
        given.refuse(["vocab_size"], f"in a run of {config.task}")
    if values.schedule and values.sweep:
        given.refuse(["sweep"], "with --schedule")
    if not values.schedule:
        given.refuse(["plot", "remat"], "without --schedule")
    if bool(values.topology) == bool(values.sweep):
        raise UserError("give --topology=v5e:4x4 or --sweep=v5e:2x2,v5e:4x4")
    from normjax.plan.topology import prepare

    prepare(values.sweep or [values.topology])
    config = _config(config, values)
    if values.schedule:
        plot = Path(values.plot)
        return _schedule(config, values.topology, plot, remat=values.remat)
    if values.sweep:
        return _sweep(config, values.sweep)
    return _plan(config, values.topology)


def parse_mesh(text: str) -> dict[str, int]:
    """ "data=4,fsdp=4" -> {"data": 4, "fsdp": 4}; an axis data that is not named takes
    the rest.

    Raises:
      UserError: anything else.
    """
    sizes = {"data": -1}
    for item in text.split(","):
        axis, _, size = item.partition("=")
        try:
            sizes[axis] = int(size)
        except ValueError:
            form = "takes sizes by axis, such as data=4,fsdp=4"
            raise UserError(f"--mesh={text} {form}") from None
    return sizes


def _config(config: Any, values: flags.FlagValues) -> Any:
    from normjax.plan.plan import without_data

    config = without_data(config, values.vocab_size)
    if values.mesh:
        with config.unlocked():
            config.mesh = parse_mesh(values.mesh)
    return config


def _plan(config: Any, name: str) -> int:
    from normjax.plan.advice import find_fit
    from normjax.plan.plan import make_plan
    from normjax.plan.tables import misfit, show
    from normjax.plan.topology import devices_of

    devices = devices_of(name)
    plan = make_plan(config, name, devices, ("train", "eval"))
    show(plan)
    if not misfit(plan):
        return 0
    print("It does not fit: compiling what may.")
    overrides = find_fit(config, plan, devices)
    would = (
        f"it fits with {overrides}" if overrides else "take more devices or fewer rows"
    )
    print(f"does not fit: {misfit(plan)}; {would}", file=sys.stderr)
    return EXIT_FAILED


def _schedule(config: Any, name: str, chart: Path, remat: bool) -> int:
    from normjax.plan import schedule_tables
    from normjax.plan.scheduled_steps import recomputing_programs, step_programs

    programs = (recomputing_programs if remat else step_programs)(config, name)
    found = schedule_tables.watched(programs, name)
    show = schedule_tables.show_costs if remat else schedule_tables.show_schedules
    show(found)
    schedule_tables.save_chart(found, chart)
    print(f"chart: {chart}")
    return 0


def _sweep(config: Any, names: Sequence[str]) -> int:
    from normjax.plan.plan import Plan, make_plan
    from normjax.plan.tables import misfit, show_sweep
    from normjax.plan.topology import devices_of

    rows: list[tuple[str, Plan | str]] = []
    for name in names:
        devices = devices_of(name)
        try:
            rows.append((name, make_plan(config, name, devices)))
        except UserError as error:  # of this many devices
            rows.append((name, str(error)))
    show_sweep(rows)
    plans = [plan for _, plan in rows if isinstance(plan, Plan)]
    fits = len(plans) == len(rows) and not any(map(misfit, plans))
    return 0 if fits else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(run(plan_command, sys.argv))
