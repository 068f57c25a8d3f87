"""Norms in float64 NumPy, written from their equations.

Each is `oracle(x, params, stats, mask, train, kwargs) -> (y, new stats)` on plain
dicts of arrays. They share no code with normjax.
"""

import numpy as np


def layer_norm(x, params, stats, mask, train, kwargs):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    y = (x - mean) / np.sqrt(var + kwargs.get("epsilon", 1e-6))
    return y * params.get("scale", 1.0) + params.get("bias", 0.0), stats


def rms_norm(x, params, stats, mask, train, kwargs):
    root = np.sqrt((x**2).mean(-1, keepdims=True) + kwargs.get("epsilon", 1e-6))
    return x / root * params.get("scale", 1.0), stats


def none(x, params, stats, mask, train, kwargs):
    return x, stats


def batch_norm(x, params, stats, mask, train, kwargs):
    y, new = x, stats
    mean, var = stats["mean"], stats["var"]
    if train:
        rows = x.reshape(-1, x.shape[-1])
        if mask is not None:
            mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
            rows = rows[np.broadcast_to(mask, x.shape)[..., 0].reshape(-1)]
        n = len(rows)
        if n:
            mean, var = rows.mean(0), rows.var(0)
            keep = kwargs.get("momentum", 0.9)
            kept_var = var
            if kwargs.get("unbiased_running_var"):
                kept_var = var * n / max(n - 1, 1)
            new = {
                "mean": keep * stats["mean"] + (1 - keep) * mean,
                "var": keep * stats["var"] + (1 - keep) * kept_var,
            }
    y = (x - mean) / np.sqrt(var + kwargs.get("epsilon", 1e-5))
    return y * params.get("scale", 1.0) + params.get("bias", 0.0), new


def repbn(x, params, stats, mask, train, kwargs):
    y, new = batch_norm(x, params, stats, mask, train, kwargs)
    if kwargs.get("skip_masked") and mask is not None and train:
        valid = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        y = np.where(valid, y, x)
    return y + params["alpha"] * x, new


def prepbn(x, params, stats, mask, train, kwargs):
    oracles = {"layer_norm": layer_norm, "rms_norm": rms_norm}
    replaced = kwargs.get("layer_norm", "layer_norm")
    layer = oracles[replaced](x, params.get("layer_norm", {}), {}, mask, train, {})[0]
    inner = stats["batch_norm"]
    batch, new = repbn(x, params["batch_norm"], inner, mask, train, {})
    if not train:
        return batch, stats
    step, warmup = int(stats["step"]), kwargs.get("warmup_steps", 0)
    ticked = {"batch_norm": new, "step": step + 1}
    if step < warmup:
        return layer, {"batch_norm": inner, "step": step + 1}
    lam = kwargs.get("start", 1.0) * max(1 - (step - warmup) / kwargs["decay_steps"], 0)
    return lam * layer + (1 - lam) * batch, ticked
