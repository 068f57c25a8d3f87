"""What a run says of itself before it trains."""

from typing import Any

import jax

from normjax.devices.processes import is_first
from normjax.records import report
from normjax.train.experiment import Experiment
from normjax.train.state import TrainState


def print_summary(experiment: Experiment, state: TrainState, flops: float) -> None:
    """Tables of the run and of the model's parts.

    Args:
      state: that it goes on from.  flops: of a step, on a device.
    """
    config, model, mesh = experiment.config, experiment.model, experiment.mesh
    each = "each microbatch" if config.microbatches > 1 else "the global batch"
    alone = config.parallelism == "pmap" and not config.sync_batch_stats
    kind, sizes = mesh.devices.flat[0].device_kind, dict(mesh.shape)
    axes = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    rows = [
        ("model", f"{config.model.name} ({type(model).__name__})"),
        ("norm, mixer", _component_names(model)),
        ("parameters", sum(x.size for x in jax.tree.leaves(state.params))),
        ("FLOPs a step and device", flops),
        ("devices", f"{mesh.size} x {kind}{f' ({axes})' if axes else ''}"),
        ("data", experiment.task.describe()),
        *experiment.task.details(),
        ("batch statistics", f"of {each}{' on a device' if alone else ''}"),
        ("steps", f"{int(state.step):,} of {config.total_steps:,} done"),
    ]
    report.table("run", ("", ""), rows)
    if is_first():
        _print_parts(experiment)


def _print_parts(experiment: Experiment) -> None:
    parts = experiment.parts()
    sums = [sum(numbers) for numbers in list(zip(*parts, strict=True))[1:]]
    columns = ("part", "modules", "parameters", "multiply-adds of an example")
    report.table("model", columns, [*parts, ("all", *sums)])


def _component_names(model: Any) -> str:
    """Classes of its norm and mixers, as far as it has them."""
    model = getattr(model, "host", model)
    parts = jax.tree.leaves([getattr(model, k, None) for k in ("norm", "mixer")])
    return ", ".join(dict.fromkeys(part.func.__name__ for part in parts))
