"""Batch statistics re-estimated with the weights held still."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from normjax.core.collections import BATCH_STATS, INTERMEDIATES
from normjax.core.files import exists, read, remove, whole_file
from normjax.core.paths import workdir_path
from normjax.devices.mesh import replicated
from normjax.devices.placed import Placed
from normjax.devices.processes import from_first, is_first
from normjax.norms import BatchNorm
from normjax.tasks.base import Batch, Objective
from normjax.tasks.scores import evaluate

PROGRESS_FILE = "recalibration.npz"

COUNT = "count"
"""Among the sums of the moments: how many batches they are of."""


def recalibrate(
    model: Any,
    variables: Mapping[str, Any],
    batches: Iterable[Batch],
    objective: Objective,
    sums: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Replace running statistics by those of `batches` (SLAB's last stage).

    The network runs as at evaluation, only its BatchNorm modules normalise with each
    batch's own statistics. The mean is the average of the batch means, the variance
    E[var + mean**2] - E[mean]**2: that of all batches together, where a running average
    would remember the last few (precise BN, Wu & Johnson, 2021).

    Args:
      model: anything with the `apply` of a Flax module.
      variables: of the model.  batches: what the objective takes, of equal sizes.
      sums: of the moments over `sums[COUNT]` batches before these; added to in place.

    Returns:
      the new `batch_stats` collection.
    """

    def train_mode(call, args, kwargs, context):
        ours = isinstance(context.module, BatchNorm)
        if ours and context.method_name == "__call__":
            kwargs = {**kwargs, "train": True}
        return call(*args, **kwargs)

    def moments(variables, batch):
        x, known = objective.inputs(batch)
        mutable = [BATCH_STATS, INTERMEDIATES]
        with nn.intercept_methods(train_mode):
            _, new = model.apply(variables, x, train=False, mutable=mutable, **known)
        return {COUNT: jnp.ones(()), **_raw_moments(new.get(INTERMEDIATES, {}))}

    whole = replicated(model.mesh) if isinstance(model, Placed) else None
    step = jax.jit(moments, out_shardings=whole)
    sums = evaluate(step, variables, batches, sums)
    return _with_moments(variables[BATCH_STATS], sums)


def _raw_moments(sown: Any) -> dict[str, jax.Array]:
    """ "PATH/mean" and "PATH/square" of every module that sows "mean" and "var"."""
    last: dict[Any, Any] = {
        path: t[-1] for path, t in cast(Any, flatten_dict(sown)).items()
    }
    raw = {}
    for (*module, name), var in last.items():
        mean = last.get((*module, "mean"))
        if name == "var" and mean is not None:
            raw["/".join((*module, "mean"))] = mean
            raw["/".join((*module, "square"))] = var + mean**2
    return raw


def _with_moments(stats: Any, sums: dict[str, Any], path: str = "") -> Any:
    """`stats` with means and variances from the sums of the raw moments."""
    if not isinstance(stats, Mapping):
        return stats
    new = {k: _with_moments(v, sums, f"{path}{k}/") for k, v in stats.items()}
    if f"{path}square" in sums:
        mean, square = (sums[f"{path}{k}"] / sums[COUNT] for k in ("mean", "square"))
        moments = {"mean": mean, "var": np.maximum(square - mean**2, 0)}
        new |= {k: np.asarray(v, stats[k].dtype) for k, v in moments.items()}
    return new


def keep_progress(workdir: Path, sums: Mapping[str, np.ndarray]) -> None:
    """Write the sums of a recalibration that was stopped into the workdir."""
    if not is_first():
        return
    with whole_file(workdir_path(workdir) / PROGRESS_FILE) as file:
        np.savez(file, allow_pickle=False, **cast(Any, sums))


def progress(workdir: Path) -> dict[str, np.ndarray]:
    """What `keep_progress` wrote; nothing where there is nothing."""
    path = workdir_path(workdir) / PROGRESS_FILE
    if not from_first(is_first() and exists(path)):
        return {}
    with np.load(io.BytesIO(read(path)), allow_pickle=False) as sums:
        return dict(sums)


def forget(workdir: Path) -> None:
    """Remove what `keep_progress` wrote."""
    if is_first():
        remove(workdir_path(workdir) / PROGRESS_FILE)
