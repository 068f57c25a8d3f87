"""Norms over the channels or positions of one token or example."""

import numpy as np

from tests.norms import oracles
from tests.norms.row import Row


def valid_of(mask, x):
    """bool of the shape of x."""
    if mask is None:
        return np.ones(x.shape, bool)
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return np.broadcast_to(mask, x.shape)


def moments(x, valid):
    """Mean and biased variance of the valid entries, 0 where there are none."""
    entries = x[valid]
    return (entries.mean(), entries.var()) if entries.size else (0.0, 0.0)


def crms_norm(x, params, stats, mask, train, kwargs):
    whole = np.concatenate([x, -x.sum(-1, keepdims=True)], -1)
    root = np.sqrt((whole**2).mean(-1, keepdims=True) + kwargs.get("epsilon", 1e-6))
    return x / root, stats


def simple_rms_norm(x, params, stats, mask, train, kwargs):
    return oracles.rms_norm(x, {}, stats, mask, train, kwargs)


def normalized(x, valid, parts, epsilon):
    """Every part (an index) of x by its own moments."""
    y = np.empty_like(x)
    for part in parts:
        mean, var = moments(x[part], valid[part])
        y[part] = (x[part] - mean) / np.sqrt(var + epsilon)
    return y


def group_parts(x, groups):
    size = x.shape[-1] // groups
    for b in range(len(x)):
        for g in range(groups):
            yield np.s_[b, ..., g * size : (g + 1) * size]


def group_norm(x, params, stats, mask, train, kwargs):
    groups, epsilon = kwargs["num_groups"], kwargs.get("epsilon", 1e-5)
    if kwargs.get("per_token"):
        tokens = x.reshape(-1, x.shape[-1])
        parts = group_parts(tokens, groups)
        y = normalized(tokens, np.ones(tokens.shape, bool), parts, epsilon)
        y = y.reshape(x.shape)
    else:
        y = normalized(x, valid_of(mask, x), group_parts(x, groups), epsilon)
    return y * params.get("scale", 1.0) + params.get("bias", 0.0), stats


def instance_norm(x, params, stats, mask, train, kwargs):
    kwargs = {**kwargs, "num_groups": x.shape[-1]}
    return group_norm(x, params, stats, mask, train, kwargs)


def estimated_batch_norm(x, params, stats, mask, train):
    new = stats
    if train:
        rows = x[valid_of(mask, x)].reshape(-1, x.shape[-1])
        s = stats["speed"] if len(rows) else 0.0
        old = stats["mean"]
        new = {
            "mean": (1 - s) * old + s * rows.mean(0),
            "var": (1 - s) * stats["var"] + s * ((rows - old) ** 2).mean(0),
            "speed": stats["speed"],
        }
    y = (x - new["mean"]) / np.sqrt(new["var"] + 1e-5)
    return y * params["scale"] + params["bias"], new


def batch_channel_norm(x, params, stats, mask, train, kwargs):
    inner = (params["batch_norm"], stats["batch_norm"], mask, train)
    if kwargs.get("statistics") == "estimate":
        h, new = estimated_batch_norm(x, *inner)
    else:
        h, new = oracles.batch_norm(x, *inner, {})
    groups = kwargs["num_groups"]
    y, _ = group_norm(h, {}, {}, mask, train, kwargs)
    gain, bias = (
        np.repeat(params[k], x.shape[-1] // groups) for k in ("scale", "bias")
    )
    return y * gain + bias, {"batch_norm": new}


def estimated_gradient(x, dy, params, stats, overwrite, mask, kwargs):
    """Of the estimate form: running statistics are constants, group moments are not."""
    batch, running, valid = params["batch_norm"], stats["batch_norm"], valid_of(mask, x)
    _, new = estimated_batch_norm(x, batch, running, mask, True)
    root = np.sqrt(new["var"] + 1e-5)
    h = (x - new["mean"]) / root * batch["scale"] + batch["bias"]
    size = x.shape[-1] // kwargs["num_groups"]
    g, y, dh = dy * np.repeat(params["scale"], size), np.empty_like(x), np.empty_like(x)
    for part in group_parts(x, kwargs["num_groups"]):
        inside, n = valid[part], max(valid[part].sum(), 1)
        mean, var = moments(h[part], inside)
        y[part] = (h[part] - mean) / np.sqrt(var + 1e-5)
        through = (g[part].sum() + y[part] * (g[part] * y[part]).sum()) / n
        dh[part] = (g[part] - inside * through) / np.sqrt(var + 1e-5)

    def per_channel(v):
        return v.reshape(-1, x.shape[-1]).sum(0)

    gradients = {
        "scale": per_channel(dy * y).reshape(-1, size).sum(1),
        "bias": per_channel(dy).reshape(-1, size).sum(1),
        "batch_norm": {
            "scale": per_channel(dh * (x - new["mean"]) / root),
            "bias": per_channel(dh),
        },
    }
    return dh * batch["scale"] / root, gradients, {}


def ibn_a(x, params, stats, mask, train, kwargs):
    h = int(x.shape[-1] * kwargs.get("ratio", 0.5))
    first, _ = instance_norm(x[..., :h], params["instance_norm"], {}, mask, train, {})
    inner = (params["batch_norm"], stats["batch_norm"], mask, train, {})
    rest, new = oracles.batch_norm(x[..., h:], *inner)
    return np.concatenate([first, rest], -1), {"batch_norm": new}


GRID = (4, 3, 5, 6)

ROWS = [
    Row("crms_norm", crms_norm, large_mean=False),
    Row("crms_norm", crms_norm, {"epsilon": 1e-2}, large_mean=False),
    Row("simple_rms_norm", simple_rms_norm, large_mean=False),
    Row("group_norm", group_norm, {"num_groups": 2}),
    Row(
        "group_norm",
        group_norm,
        {"num_groups": 3, "epsilon": 1e-2},
        shape=GRID,
        large_mean=False,  # it is tried on 32 channels
    ),
    Row("group_norm", group_norm, {"num_groups": 2, "per_token": True}),
    Row("instance_norm", instance_norm),
    Row("instance_norm", instance_norm, {"use_bias": False}, shape=GRID),
    Row("batch_channel_norm", batch_channel_norm, {"num_groups": 2}),
    Row("batch_channel_norm", batch_channel_norm, {"num_groups": 2}, shape=GRID),
    Row(
        "batch_channel_norm",
        batch_channel_norm,
        {"num_groups": 3, "statistics": "estimate"},
        stats={"speed": 0.3},
        large_mean=False,
        gradient=estimated_gradient,
    ),
    Row("ibn_a", ibn_a),
    Row("ibn_a", ibn_a, {"ratio": 0.7}, shape=GRID),
    Row("ibn_b", instance_norm, shape=GRID),
]
