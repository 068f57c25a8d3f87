"""Variants of BatchNorm: by parts of the batch, clamped, filled, balanced by task."""

import numpy as np

from tests.norms import oracles
from tests.norms.example_rows import valid_of
from tests.norms.row import Row


def ghost_batch_norm(x, params, stats, mask, train, kwargs):
    if not train:
        return oracles.batch_norm(x, params, stats, mask, train, kwargs)
    size, y, start = kwargs["group_size"], [], 0
    while start < len(x):
        part = np.s_[start : start + size]
        shown = None if mask is None else mask[part]
        plain = {**stats}
        if mask is not None and not shown.any():
            # A group without a valid position has moments 0 and leaves no trace.
            plain = {"mean": np.zeros(x.shape[-1]), "var": np.zeros(x.shape[-1])}
            out, _ = oracles.batch_norm(x[part], params, plain, None, False, kwargs)
        else:
            out, stats = oracles.batch_norm(x[part], params, stats, shown, True, kwargs)
        y.append(out)
        start += size
    return np.concatenate(y), stats


def clamped_batch_norm(x, params, stats, mask, train, kwargs):
    # Moments and state of the plain norm; the output by its own denominator.
    _, new = oracles.batch_norm(x, params, stats, mask, train, kwargs)
    mean, var = stats["mean"], stats["var"]
    if train:
        rows = x[valid_of(mask, x)].reshape(-1, x.shape[-1])
        mean, var = rows.mean(0), rows.var(0)
    y = (x - mean) / np.sqrt(np.maximum(var, kwargs.get("epsilon", 1e-5)))
    return y * params["scale"] + params["bias"], new


def filled_batch_norm(x, params, stats, mask, train, kwargs):
    if kwargs.get("token_scaling", True):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    if mask is not None:
        valid = valid_of(mask, x)
        x = np.where(valid, x, x[valid].reshape(-1, x.shape[-1]).mean(0))
    inner = (params["batch_norm"], stats["batch_norm"], None, train)
    y, new = oracles.batch_norm(x, *inner, {"momentum": 0.95, **kwargs})
    return y, {"batch_norm": new}


def adab2n(x, params, stats, mask, train, kwargs, task_ids=None):
    """With `task_ids` = None the weights are even: BatchNorm at a moving rate."""
    mean, var, new = stats["mean"], stats["var"], stats
    if train:
        valid = valid_of(mask, x)
        weight = valid / valid[..., 0].sum()
        task = stats["task"]
        if task_ids is not None:
            weight, task = task_weighted(x, valid, params, stats, task_ids)
        axes = tuple(range(x.ndim - 1))
        mean = (weight * x).sum(axes)
        var = (weight * (x - mean) ** 2).sum(axes)
        keep, kappa = kwargs.get("momentum", 0.9), kwargs.get("kappa", 0.5)
        eta = 1 / stats["inverse_rate"]
        eta = eta / (eta + keep**kappa)
        new = {
            "mean": stats["mean"] + eta * (mean - stats["mean"]),
            "var": (1 - eta) * stats["var"] + eta * var,
            "inverse_rate": 1 / eta,
            "task": task,
        }
    y = (x - mean) / np.sqrt(var + 1e-5)
    return y * params["scale"] + params["bias"], new


def task_weighted(x, valid, params, stats, task_ids):
    positions = valid[..., 0].reshape(len(x), -1).sum(1)
    shown = task_ids[positions > 0]
    task = max(int(stats["task"]), int(shown.max()))
    psi = params["task_weight"]
    share = [np.exp(psi[j]) + np.sum(shown == j) for j in range(task + 1)]
    weight = np.zeros(x.shape)
    for i, j in enumerate(task_ids):
        if positions[i]:
            weight[i] = share[j] / sum(share) / positions[task_ids == j].sum()
    return weight * valid, task


TASK = {"task": 1}

ROWS = [
    Row("ghost_batch_norm", ghost_batch_norm, {"group_size": 3}),
    Row("ghost_batch_norm", ghost_batch_norm, {"group_size": 1}),
    Row(
        "ghost_batch_norm",
        ghost_batch_norm,
        {"group_size": 2, "unbiased_running_var": True, "momentum": 0.6},
        shape=(4, 3, 5, 6),
    ),
    Row("clamped_batch_norm", clamped_batch_norm),
    Row("clamped_batch_norm", clamped_batch_norm, {"epsilon": 4.0}, large_mean=False),
    Row("filled_batch_norm", filled_batch_norm, large_mean=False),
    Row("filled_batch_norm", filled_batch_norm, {"token_scaling": False}),
    Row("adab2n", adab2n, {"num_tasks": 4}, stats=TASK),
    Row("adab2n", adab2n, {"kappa": 0.0}, shape=(4, 3, 5, 6), stats=TASK),
]
