"""PowerNorm in float64 NumPy, forward and its approximate gradient, and its rows."""

import numpy as np

from tests.norms.row import Row


def constants(kwargs):
    defaults = {
        "num_groups": 1,
        "warmup_steps": 10000,
        "warmup_rule": "released",
        "backward_scale": "batch",
        "forward_decay": 0.9,
        "backward_decay": 0.9,
        "floor": 1e-4,
        "epsilon": 1e-5,
    }
    return {**defaults, **kwargs}


def valid_rows(x, mask):
    rows = x.reshape(-1, x.shape[-1])
    if mask is None:
        return rows
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    return rows[np.broadcast_to(mask, x.shape)[..., 0].reshape(-1)]


def group_scaled(x, c):
    """(h, what x was divided by), the divisor of the shape of x."""
    if not c["num_groups"]:
        return x, np.ones_like(x)
    parts = np.split(x, c["num_groups"], axis=-1)
    roots = [np.sqrt((p**2).mean(-1, keepdims=True) + c["epsilon"]) for p in parts]
    root = np.concatenate(
        [np.broadcast_to(r, p.shape) for r, p in zip(roots, parts, strict=True)], -1
    )
    return x / root, root


def scales(x, stats, mask, c):
    """(h, square of the forward divisor, of the backward one, v or None)."""
    h, _ = group_scaled(x, c)
    rows = valid_rows(h, mask)
    running = np.maximum(stats["phi"], c["floor"])
    v = (rows**2).mean(0) if len(rows) else None
    batch = running if v is None else v
    forward = batch if stats["step"] + 1 <= c["warmup_steps"] else running
    backward = batch if c["backward_scale"] == "batch" else forward
    return h, forward, backward, v


def power_norm(x, params, stats, mask, train, kwargs):
    c = constants(kwargs)
    h, square, _, v = scales(x, stats, mask, c)
    new = stats
    if not train:
        square = np.maximum(stats["phi"], c["floor"])
    elif v is not None:
        k, phi, decay = int(stats["step"]) + 1, stats["phi"], c["forward_decay"]
        if k < c["warmup_steps"]:
            phi = phi * (k - 1) / k + v / k
        if k >= c["warmup_steps"] or c["warmup_rule"] == "released":
            phi = decay * phi + (1 - decay) * v
        new = {"phi": phi, "step": k}
    z = h / np.sqrt(square + c["epsilon"])
    return z * params.get("scale", 1.0) + params.get("bias", 0.0), new


def power_norm_gradient(x, dy, params, stats, overwrite, mask, kwargs):
    c = constants(kwargs)
    h, forward, backward, v = scales(x, stats, mask, c)
    z = h / np.sqrt(forward + c["epsilon"])
    q, nu = dy * params.get("scale", 1.0), overwrite["nu"]
    p = q - (1 - c["backward_decay"]) * nu * z
    axes = tuple(range(x.ndim - 1))
    new = nu if v is None else nu + (p * z).mean(axes)
    dh = p / np.sqrt(backward + c["epsilon"])
    _, root = group_scaled(x, c)
    dx = dh / root
    if c["num_groups"]:
        parts = np.split(dh * h, c["num_groups"], axis=-1)
        means = [np.broadcast_to(p.mean(-1, keepdims=True), p.shape) for p in parts]
        dx = (dh - h * np.concatenate(means, -1)) / root
    dparams = {"scale": (dy * z).sum(axes), "bias": dy.sum(axes)}
    return dx, {k: dparams[k] for k in params}, {"nu": new}


ROWS = [
    Row(
        "power_norm",
        power_norm,
        kwargs,
        shape=shape,
        stats={"step": step},
        large_mean=False,
        gradient=power_norm_gradient,
    )
    for step, shape, kwargs in (
        (7, (4, 7, 6), {"warmup_steps": 5}),
        (2, (4, 7, 6), {"num_groups": 2, "warmup_steps": 5}),
        (4, (4, 7, 6), {"num_groups": 3, "warmup_steps": 5, "use_bias": False}),
        (2, (4, 3, 5, 6), {"warmup_rule": "cumulative", "forward_decay": 0.7}),
        (
            9,
            (4, 7, 6),
            {
                "num_groups": None,
                "warmup_steps": 0,
                "backward_scale": "running",
                "backward_decay": 0.5,
            },
        ),
        (9, (4, 7, 6), {"num_groups": None, "warmup_steps": 3, "floor": 1.1}),
    )
]
