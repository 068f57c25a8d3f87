"""Rows of the mixers of feature maps, with oracles from their equations."""

import math

import numpy as np

from tests.mixers.oracles import (
    dense,
    depthwise,
    heads,
    joined,
    relu_attention,
    simplified_linear,
    softmax_attention,
)
from tests.mixers.row import Row


def visible_keys(mask):
    return None if mask is None else mask.reshape(len(mask), 1, 1, -1)


def kept(t, mask):
    return t if mask is None else np.where(mask[..., None], t, 0.0)


def softmax_core(q, k, v, params, mask, kwargs, bias=0.0):
    """q: [B, H, W, D].  k, v: [B, H', W', D]."""
    flat = (t.reshape(len(t), -1, t.shape[-1]) for t in (q, k, v))
    q_, k_, v_ = (heads(t, kwargs["num_heads"]) for t in flat)
    return joined(softmax_attention(q_, k_, v_, visible_keys(mask), bias)).reshape(
        q.shape
    )


def relative_core(q, k, v, params, mask, kwargs):
    """One window: the bias by loops over its positions."""
    _, h, w, _ = q.shape
    table = params["relative_position_bias"]
    bias = np.zeros((kwargs["num_heads"], h * w, h * w))
    for i in range(h * w):
        for j in range(h * w):
            dy, dx = i // w - j // w, i % w - j % w
            bias[:, i, j] = table[dy + h - 1, dx + w - 1]
    bias = bias[None]
    if kwargs.get("labels") is not None:
        labels = kwargs["labels"].reshape(-1)
        bias = bias - 100.0 * (labels[:, None] != labels)
    return softmax_core(q, k, v, params, mask, kwargs, bias)


def stretch(v, grid):
    """Positions of v as one sequence, linearly interpolated to another length."""
    old, new = v.shape[1] * v.shape[2], grid[0] * grid[1]
    flat, out = v.reshape(len(v), old, -1), np.zeros((len(v), new, v.shape[-1]))
    for n in range(new):
        place = min(max((n + 0.5) * old / new - 0.5, 0), old - 1)
        low = int(np.floor(place))
        high, part = min(low + 1, old - 1), place - low
        out[:, n] = flat[:, low] * (1 - part) + flat[:, high] * part
    return out.reshape(len(v), *grid, -1)


def local(v, params, num_heads):
    return depthwise(v, params["dwc_kernel"]) + np.tile(params["dwc_bias"], num_heads)


def sla_core(q, k, v, params, mask, kwargs):
    if q.shape == v.shape:
        return simplified_linear(q, k, v, params, mask, kwargs["num_heads"])
    q = np.maximum(q, 0)
    k = kept(np.maximum(k + params["positional_encoding"], 0), mask)
    return linear_core(q, k, kept(v, mask), params, kwargs, 1e-6)


def linear_core(q, k, v, params, kwargs, epsilon):
    flat = (t.reshape(len(t), -1, t.shape[-1]) for t in (q, k, v))
    o = relu_attention(*(heads(t, kwargs["num_heads"]) for t in flat), epsilon)
    v = stretch(v, q.shape[1:3])
    return joined(o).reshape(q.shape) + local(v, params, kwargs["num_heads"])


def focused_core(q, k, v, params, mask, kwargs):
    s = np.log(1 + np.exp(params["scale"]))

    def focus(t):
        t = (np.maximum(t, 0) + 1e-6) / s
        power = t ** kwargs.get("focusing_factor", 3)
        size, new = (np.sqrt((u**2).sum(-1, keepdims=True)) for u in (t, power))
        return power / new * size

    q, k = focus(q), kept(focus(k + params["positional_encoding"]), mask)
    # sum_j q k_j / M + eps: the same with sums and M eps.
    epsilon = 1e-6 * k.shape[1] * k.shape[2]
    return linear_core(q, k, kept(v, mask), params, kwargs, epsilon)


def projected(x, params, name, count):
    return np.split(dense(x, params[name]), count, -1)


def whole(core):
    def oracle(x, params, mask, kwargs):
        q, k, v = projected(x, params, "qkv", 3)
        return dense(core(q, k, v, params, mask, kwargs), params["proj"])

    return oracle


def windows(core):
    """One window after the other, cut out of the rolled image by slices."""

    def oracle(x, params, mask, kwargs):
        size, shift = kwargs["window_size"], kwargs.get("shift", 0)
        h, w = (size, size) if isinstance(size, int) else size
        height, width = x.shape[1:3]
        if h == w and min(height, width) <= h:
            h = w = min(height, width)
            shift = 0
        x = np.roll(x, (-shift, -shift), (1, 2))
        mask = None if mask is None else np.roll(mask, (-shift, -shift), (1, 2))
        y = np.zeros_like(x)
        for top in range(0, height, h):
            for left in range(0, width, w):
                at = (slice(None), slice(top, top + h), slice(left, left + w))
                # Rows that came around the border stand apart from their neighbours.
                rows = np.arange(top, top + h) >= height - shift
                columns = np.arange(left, left + w) >= width - shift
                labels = 2 * rows[:, None] + columns if shift else None
                part = None if mask is None else mask[at]
                q, k, v = projected(x[at], params, "qkv", 3)
                o = core(q, k, v, params, part, {**kwargs, "labels": labels})
                y[at] = dense(o, params["proj"])
        return np.roll(y, (shift, shift), (1, 2))

    return oracle


def layer_norm(x, params):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def reduced(core):
    def oracle(x, params, mask, kwargs):
        side, small = kwargs.get("sr_ratio", 1), kept(x, mask)
        if side > 1:
            kernel, rows, columns = params["sr"]["kernel"], *x.shape[1:3]
            patches = [
                [small[:, i : i + side, j : j + side] for j in range(0, columns, side)]
                for i in range(0, rows, side)
            ]
            small = np.array(
                [
                    [np.einsum("bijc,ijcd->bd", p, kernel) for p in row]
                    for row in patches
                ]
            )
            small = np.moveaxis(small, 2, 0) + params["sr"]["bias"]
            small = layer_norm(small, params["norm"])
            if mask is not None:
                mask = mask.reshape(len(x), rows // side, side, columns // side, side)
                mask = mask.any((2, 4))
        q = dense(x, params["q"])
        k, v = projected(small, params, "kv", 2)
        return dense(core(q, k, v, params, mask, kwargs), params["proj"])

    return oracle


def pooled_reduction(x, params, mask, kwargs):
    size, (batch, rows, columns, width) = kwargs["pool_size"], x.shape
    weight = np.ones(x.shape[:3]) if mask is None else mask.astype(float)
    small = np.zeros((batch, size, size, width))
    keys = np.zeros((batch, size, size), bool)
    for i in range(size):
        for j in range(size):
            at = (
                slice(None),
                slice(i * rows // size, -(-(i + 1) * rows // size)),
                slice(j * columns // size, -(-(j + 1) * columns // size)),
            )
            count = weight[at].sum((1, 2))
            total = kept(x, mask)[at].sum((1, 2))
            keys[:, i, j] = count > 0
            small[:, i, j] = total / np.maximum(count, 1)[:, None]
    r = layer_norm(dense(small, params["sr"]), params["norm"])
    erf = np.vectorize(math.erf)
    r = r * (1 + erf(r / np.sqrt(2))) / 2
    q, (k, v) = dense(x, params["q"]), projected(r, params, "kv", 2)
    o = softmax_core(q, k, v, params, None if mask is None else keys, kwargs)
    return dense(o, params["proj"])


def crosses(core):
    def oracle(x, params, mask, kwargs):
        q, k, v = projected(x, params, "qkv", 3)
        split, (height, width) = kwargs.get("split_size", 7), x.shape[1:3]
        branches = {"vertical": (height, split), "horizontal": (split, width)}
        if max(height, width) <= split:
            branches = {"whole": (height, width)}
        inner = {**kwargs, "num_heads": kwargs["num_heads"] // len(branches)}
        o = np.zeros_like(q)
        channels = q.shape[-1] // len(branches)
        for n, (name, (h, w)) in enumerate(branches.items()):
            own = params.get(name)
            for top in range(0, height, h):
                for left in range(0, width, w):
                    at = (
                        slice(None),
                        slice(top, top + h),
                        slice(left, left + w),
                        slice(n * channels, (n + 1) * channels),
                    )
                    part = None if mask is None else mask[at[:3]]
                    value = kept(v[at], part)
                    lepe = depthwise(value, own["lepe_kernel"]) + own["lepe_bias"]
                    o[at] = lepe + core(q[at], k[at], value, own, part, inner)
        return dense(o, params["proj"])

    return oracle


def pooling(x, params, mask, kwargs):
    reach, y = kwargs.get("pool_size", 3) // 2, np.zeros_like(x)
    weight = np.ones(x.shape[:3]) if mask is None else mask.astype(float)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            at = (
                slice(None),
                slice(max(i - reach, 0), i + reach + 1),
                slice(max(j - reach, 0), j + reach + 1),
            )
            count = np.maximum(weight[at].sum((1, 2)), 1)[:, None]
            y[:, i, j] = kept(x, mask)[at].sum((1, 2)) / count - x[:, i, j]
    return y


def identity(x, params, mask, kwargs):
    return x


HEADS = {"num_heads": 2}
CONV = {"num_heads": 2, "kernel_size": 3}
RELATIVE, SOFTMAX = ({**HEADS, "core": f"{w}softmax"} for w in ("relative_", ""))
GRID = (2, 4, 6, 4)

ROWS = [
    Row("focused_linear", whole(focused_core), CONV, (2, 3, 4, 4)),
    Row("focused_linear", whole(focused_core), {**HEADS, "focusing_factor": 4}, GRID),
    Row("whole_map", whole(softmax_core), HEADS, GRID),
    Row("whole_map", whole(relative_core), RELATIVE, (2, 3, 4, 4)),
    Row("window", windows(relative_core), {**HEADS, "window_size": 2}, GRID),
    Row("window", windows(softmax_core), {**SOFTMAX, "window_size": 2}, GRID),
    Row(
        "window",
        windows(relative_core),
        {**HEADS, "window_size": 3, "shift": 1, "qkv_bias": False},
        (2, 6, 6, 4),
    ),
    Row(
        "window",
        windows(relative_core),
        {**HEADS, "window_size": (2, 3), "shift": 1},
        GRID,
    ),
    Row("window", windows(relative_core), {**HEADS, "window_size": 7}, (2, 3, 6, 4)),
    Row("window_sla", windows(sla_core), {**CONV, "window_size": 2, "shift": 1}, GRID),
    Row(
        "window_focused_linear", windows(focused_core), {**CONV, "window_size": 2}, GRID
    ),
    Row("spatial_reduction", reduced(softmax_core), HEADS, GRID),
    Row("spatial_reduction", reduced(softmax_core), {**HEADS, "sr_ratio": 2}, GRID),
    Row("spatial_reduction_sla", reduced(sla_core), {**CONV, "sr_ratio": 2}, GRID),
    Row("spatial_reduction_sla", reduced(sla_core), CONV, GRID),
    Row(
        "spatial_reduction_focused_linear",
        reduced(focused_core),
        {**CONV, "sr_ratio": 2},
        GRID,
    ),
    Row("linear_spatial_reduction", pooled_reduction, {**HEADS, "pool_size": 3}, GRID),
    Row("cross_shaped_window", crosses(softmax_core), {**HEADS, "split_size": 2}, GRID),
    Row("cross_shaped_window", crosses(softmax_core), HEADS, (2, 4, 4, 4)),
    Row("cross_shaped_window_sla", crosses(sla_core), {**CONV, "split_size": 2}, GRID),
    Row(
        "cross_shaped_window_focused_linear",
        crosses(focused_core),
        {**CONV, "split_size": 2},
        GRID,
    ),
    Row("pooling", pooling, {}, GRID),
    Row("pooling", pooling, {"pool_size": 5}, GRID),
    Row("identity", identity, {}, causal=True),
]
