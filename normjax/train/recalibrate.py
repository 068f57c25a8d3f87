"""Batch statistics re-estimated with the weights held still."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.core.collections import BATCH_STATS, INTERMEDIATES
from normjax.norms import BatchNorm
from normjax.tasks.base import Batch, Objective


def recalibrate(
    model: Any,
    variables: Mapping[str, Any],
    batches: Iterable[Batch],
    objective: Objective,
) -> dict[str, Any]:
    """Replace running statistics by those of `batches` (SLAB's last stage).

    The network runs as at evaluation, only its BatchNorm modules normalise with each
    batch's own statistics. The mean is the average of the batch means, the variance
    E[var + mean**2] - E[mean]**2: that of all batches together, where a running average
    would remember the last few (precise BN, Wu & Johnson, 2021).

    Args:
      model: anything with the `apply` of a Flax module.
      variables: of the model.  batches: what the objective takes, of equal sizes.

    Returns:
      the new `batch_stats` collection.
    """

    def train_mode(call, args, kwargs, context):
        ours = isinstance(context.module, BatchNorm)
        if ours and context.method_name == "__call__":
            kwargs = {**kwargs, "train": True}
        return call(*args, **kwargs)

    @jax.jit
    def moments(variables, batch):
        x, known = objective.inputs(batch)
        mutable = [BATCH_STATS, INTERMEDIATES]
        with nn.intercept_methods(train_mode):
            _, new = model.apply(variables, x, train=False, mutable=mutable, **known)
        sown = new.get(INTERMEDIATES, {})
        return jax.tree.map(lambda t: t[-1], sown, is_leaf=lambda t: type(t) is tuple)

    sums, count = None, 0
    for batch in batches:
        raw = _raw_moments(moments(variables, batch))
        sums = raw if sums is None else jax.tree.map(jnp.add, sums, raw)
        count += 1
    return _with_moments(variables[BATCH_STATS], sums, count)


def _raw_moments(tree: Any) -> Any:
    """{"mean", "var"} of every module -> {"mean", "square"}."""
    if "mean" in tree and "var" in tree:
        return {"mean": tree["mean"], "square": tree["var"] + tree["mean"] ** 2}
    return {k: _raw_moments(v) for k, v in tree.items() if isinstance(v, Mapping)}


def _with_moments(stats: Any, sums: Any, count: int) -> Any:
    """`stats` with means and variances from the sums of the raw moments."""
    if "square" in sums:
        mean = sums["mean"] / count
        var = jnp.maximum(sums["square"] / count - mean**2, 0)
        return {**stats, "mean": mean, "var": var}
    return {
        k: _with_moments(v, sums[k], count) if k in sums else v
        for k, v in stats.items()
    }
