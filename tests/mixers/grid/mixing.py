"""Rows of the mixers of maps around MLPs, convolutions and scans, with oracles."""

import math

import numpy as np

from normjax.norms import RMSNorm
from tests.mixers.oracles import dense, depthwise, heads, joined, softmax_attention
from tests.mixers.row import Row

_erf = np.vectorize(math.erf)


def gelu(x):
    return x * (1 + _erf(x / np.sqrt(2))) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def kept(t, mask):
    return t if mask is None else np.where(mask[..., None], t, 0.0)


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def rms_norm(x, params):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"]


def local(x, params, name):
    return depthwise(x, params[f"{name}_kernel"]) + params[f"{name}_bias"]


def raft(x, params, mask, kwargs):
    """Every column, or row, and group of rafts by itself."""
    x, out, r = kept(x, mask), np.zeros(x.shape), kwargs.get("raft_size", 2)
    vertical = kwargs.get("axis") or ("vertical", "horizontal")[kwargs["layer"] % 2]
    channels = x.shape[-1] // r
    for b in range(x.shape[0]):
        for line in range(x.shape[2 if vertical == "vertical" else 1]):
            for c in range(channels):
                mine = [i * channels + c for i in range(r)]
                at = (b, slice(None), line) if vertical == "vertical" else (b, line)
                rows = x[at][:, mine].T.reshape(-1)  # rafts, then positions
                y = dense(gelu(dense(rows, params["fc1"])), params["fc2"])
                out[at][:, mine] = y.reshape(r, -1).T
    return out


def mix_shift(x, params, mask, kwargs):
    x, (_, height, width, channels) = kept(x, mask), x.shape
    shifts = kwargs["shifts"]
    size, mixed = math.ceil(channels / len(shifts)), []
    for i, d in enumerate(shifts):
        part = x[..., i * size : (i + 1) * size]
        along = part[:, :, [(p - d) % width for p in range(width)]]
        across = part[:, [(p - d) % height for p in range(height)]]
        rows, columns = local(along, params, f"rows_{i}"), f"columns_{i}"
        mixed.append(rows + local(across, params, columns))
    y = layer_norm(np.concatenate(mixed, -1), params["norm"])
    return dense(gelu(dense(y, params["fc1"])), params["fc2"])


def efficient_modulation(x, params, mask, kwargs):
    near, times = kept(dense(x, params["context_in"]), mask), kwargs["expansion"]
    sizes = range(len(kwargs["kernel_sizes"]))
    context = sum(gelu(local(near, params, f"context_{i}")) for i in sizes)
    context = dense(context, params["context_out"])
    h = dense(x, params["fc1"])
    h = gelu(h) if times > 1 else h
    for i in range(h.shape[-1]):
        h[..., i] *= context[..., i % x.shape[-1]]
    return dense(h, params["fc2"])


def scan(u, delta, a, b, c, d, valid):
    """Position by position of one example: u, delta [L, D]; a [D, N]; b, c [L, N]."""
    h, y = np.zeros(a.shape), np.zeros(u.shape)
    for t in range(len(u)):
        if valid[t]:
            h = np.exp(delta[t][:, None] * a) * h + np.outer(delta[t] * u[t], b[t])
            y[t] = h @ c[t] + d * u[t]
    return y


def directed_scan(x, params, mask, direction, state_size):
    """One of the four groups, of whose parameters these are."""
    a, z = np.split(x @ params["in_proj"], 2, -1)
    a = silu(local(kept(a, mask), params, "conv"))
    grid, rank = x.shape[1:3], len(params["dt_proj"])
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    if direction % 2:
        places.sort(key=lambda place: place[1])  # stable: by column, then by row
    if direction > 1:
        places.reverse()
    rows, columns = np.transpose(places)
    y = np.zeros(a.shape)
    for i in range(len(x)):
        u = a[i, rows, columns]
        dt, b, c = np.split(u @ params["x_proj"], (rank, rank + state_size), -1)
        delta = np.log1p(np.exp(dt @ params["dt_proj"] + params["dt_bias"]))
        valid = np.ones(len(u), bool) if mask is None else mask[i, rows, columns]
        states = -np.exp(params["a_log"]), b, c
        y[i, rows, columns] = scan(u, delta, *states, params["skip"], valid)
    return layer_norm(y, params["norm"]) * silu(z) @ params["out_proj"]


def of_direction(params, i):
    """The parameters of one of the four groups."""
    names = ("in_proj", "x_proj", "dt_proj", "out_proj")
    mine = {name: params[name]["kernel"][i] for name in names}
    whole = {k: params[k] for k in ("conv_bias", "skip", "a_log")}
    whole |= {"dt_bias": params["dt_proj"]["bias"]}
    mine |= {k: np.split(v, 4)[i] for k, v in whole.items()}
    mine["conv_kernel"] = np.split(params["conv_kernel"], 4, -1)[i]
    return mine | {"norm": params[f"norm_{i}"]}


def group_mamba(x, params, mask, kwargs):
    n = kept(layer_norm(x, params["norm"]), mask)
    size = kwargs.get("state_size", 1)
    y = [
        directed_scan(part, of_direction(params["scans"], i), mask, i, size)
        for i, part in enumerate(np.split(n, 4, -1))
    ]
    y = np.concatenate(y, -1) * params["scale"] * n
    count = n[..., 0].size / len(n) if mask is None else mask.sum((1, 2))[:, None]
    share = np.maximum(dense(n.sum((1, 2)) / count, params["fc1"]), 0)
    share = sigmoid(dense(share, params["fc2"]))[:, None, None]
    return dense(layer_norm(y * share, params["norm"]), params["proj"])


def ulsam(x, params, mask, kwargs):
    seen, groups = kept(x, mask), kwargs["num_groups"]
    h = np.maximum(
        rms_norm(seen * params["scale"] + params["shift"], params["norm"]), 0
    )
    h = np.pad(kept(h, mask), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    corners = [(i, j) for i in range(3) for j in range(3)]
    h = np.max([h[:, i : i + height, j : j + width] for i, j in corners], 0)
    h = h * params["map_kernel"]
    h = np.stack([part.sum(-1) for part in np.split(h, groups, -1)], -1)
    h = np.maximum(rms_norm(h + params["map_bias"], params["map_norm"]), 0)
    weights = kept(np.exp(h), mask)
    weights = weights / weights.sum((1, 2), keepdims=True)
    return x + np.repeat(weights, x.shape[-1] // groups, -1) * seen


def reduced(x, kernel, stride):
    """A strided depthwise convolution, padded by half of the kernel on all sides."""
    size, (_, height, width, _) = len(kernel), x.shape
    x = np.pad(x, ((0, 0), *((size // 2,) * 2,) * 2, (0, 0)))
    rows = range(0, height + 2 * (size // 2) - size + 1, stride)
    columns = range(0, width + 2 * (size // 2) - size + 1, stride)
    lines = [
        [(x[:, i : i + size, j : j + size] * kernel).sum((1, 2)) for j in columns]
        for i in rows
    ]
    return np.stack([np.stack(line, 1) for line in lines], 1)


def overlapping_spatial_reduction(x, params, mask, kwargs):
    q, r, stride = dense(x, params["q"]), kept(x, mask), kwargs.get("sr_ratio", 1)
    if "qk_norm" in kwargs:
        q = q.reshape(*q.shape[:-1], kwargs["num_heads"], -1)
        q = rms_norm(q, params["q_norm"]).reshape(x.shape)
    if stride > 1:
        if mask is not None:
            ones = np.ones((stride + 3, stride + 3, 1))
            mask = reduced(mask[..., None] * 1.0, ones, stride)[..., 0] > 0
        r = layer_norm(reduced(r, params["sr_kernel"], stride), params["norm"])
        r = layer_norm(gelu(r) * params["sr_scale"], params["norm_out"])
    r = kept(r, mask)
    r = r + local(r, params, "local")
    k, v = np.split(kept(dense(r, params["kv"]), mask), 2, -1)
    if "qk_norm" in kwargs:
        k = k.reshape(*k.shape[:-1], kwargs["num_heads"], -1)
        k = rms_norm(k, params["k_norm"]).reshape(r.shape)
    flat = (t.reshape(len(t), -1, t.shape[-1]) for t in (q, k, v))
    q, k, v = (heads(t, kwargs["num_heads"]) for t in flat)
    visible = None if mask is None else mask.reshape(len(mask), 1, 1, -1)
    return joined(softmax_attention(q, k, v, visible)).reshape(x.shape)


OSRA = "overlapping_spatial_reduction"

ROWS = [
    Row("raft", raft, {"axis": "vertical"}, (3, 3, 2, 6)),
    Row("raft", raft, {"layer": 1, "raft_size": 3, "expansion": 1.5}, (2, 3, 2, 6)),
    Row(
        "mix_shift",
        mix_shift,
        {"shifts": (-1, 2), "kernel_sizes": (3, 1), "mlp_ratio": 1.5},
        (3, 3, 4, 5),
    ),
    Row(
        "mix_shift",
        mix_shift,
        {"shifts": (0, -2, 1), "kernel_sizes": (1, 5, 3)},
        (2, 4, 3, 7),
    ),
    *(
        Row("efficient_modulation", efficient_modulation, kwargs, (3, 3, 2, 4))
        for kwargs in (
            {"expansion": 2, "kernel_sizes": (3, 5)},
            {"expansion": 1, "kernel_sizes": (3,)},
        )
    ),
    Row("group_mamba", group_mamba, {"reduction": 2}, (3, 2, 3, 8)),
    Row(
        "group_mamba",
        group_mamba,
        {"reduction": 3, "state_size": 3, "expansion": 2.0, "kernel_size": 1},
        (2, 3, 2, 8),
    ),
    *(
        Row("ulsam", ulsam, {"norm": RMSNorm, "num_groups": groups}, (3, 3, 2, 6))
        for groups in (2, 3)
    ),
    *(
        Row(OSRA, overlapping_spatial_reduction, {"num_heads": 2, **kwargs}, shape)
        for kwargs, shape in (
            ({"sr_ratio": 2}, (3, 3, 4, 4)),
            ({"sr_ratio": 3, "qkv_bias": False}, (2, 3, 5, 4)),
            ({}, (3, 3, 2, 4)),
            ({"qk_norm": RMSNorm, "sr_ratio": 2}, (2, 3, 3, 4)),
        )
    ),
]
