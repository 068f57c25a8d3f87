"""Rows of the mixers of visual networks, with oracles from their equations."""

import math

import numpy as np

from tests.mixers.grid.rows import (
    kept,
    layer_norm,
    projected,
    relative_core,
    softmax_core,
    whole,
)
from tests.mixers.oracles import dense, depthwise, heads, joined
from tests.mixers.row import Row


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def halo(x, params, mask, kwargs):
    """Query by query, its keys one after the other; zeros around the map."""
    count, b = kwargs["num_heads"], kwargs["block_size"]
    rim, step = kwargs["halo_size"], kwargs.get("stride", 1)
    batch, height, width, _ = x.shape
    q = dense(x, params["q"])
    k, v = np.split(dense(kept(x, mask), params["kv"]), [q.shape[-1]], -1)
    k, v = kept(k, mask), kept(v, mask)
    around = ((0, 0), (rim, rim), (rim, rim), (0, 0))
    k, v = np.pad(k, around), np.pad(v, around)
    seen = np.ones(x.shape[:3], bool) if mask is None else mask
    seen = np.pad(seen, around[:3], constant_values=True)
    size, window = q.shape[-1] // count, b + 2 * rim
    y = np.zeros((batch, height // step, width // step, v.shape[-1]))
    for i in range(0, height, step):
        for j in range(0, width, step):
            top, left = i // b * b, j // b * b
            row, column = (i - top) // step, (j - left) // step
            at = (slice(None), slice(top, top + window), slice(left, left + window))
            query = q[:, i, j].reshape(batch, count, size)
            keys = k[at].reshape(batch, window, window, count, size)
            values = v[at].reshape(batch, window, window, count, -1)
            rows = params["height"][window - 1 - row :][:window]
            columns = params["width"][window - 1 - column :][:window]
            scores = np.einsum("bhk,byxhk->bhyx", query, keys) / np.sqrt(size)
            scores += np.einsum("bhk,yk->bhy", query, rows)[..., None]
            scores += np.einsum("bhk,xk->bhx", query, columns)[:, :, None]
            scores = np.where(seen[at][:, None], scores, -1e300)
            weights = softmax(scores.reshape(batch, count, -1)).reshape(scores.shape)
            o = np.einsum("bhyx,byxhv->bhv", weights, values)
            y[:, i // step, j // step] = o.reshape(batch, -1)
    return y


def channel(x, params, mask, kwargs):
    q, k, v = projected(x, params, "qkv", 3)
    k, v = kept(k, mask), kept(v, mask)
    flat = (t.reshape(len(t), -1, t.shape[-1]) for t in (q, k, v))
    q_, k_, v_ = (heads(t, kwargs["num_heads"]) for t in flat)
    weights = softmax(k_.swapaxes(-1, -2) @ v_ / np.sqrt(k_.shape[-1]))
    o = joined((weights @ q_.swapaxes(-1, -2)).swapaxes(-1, -2))
    return dense(o.reshape(x.shape), params["proj"])


def cells_around(tokens):
    """[n, m, 9, C], zeros beyond the map."""
    n, m, _ = tokens.shape
    padded = np.pad(tokens, ((1, 1), (1, 1), (0, 0)))
    return np.array(
        [
            [padded[i : i + 3, j : j + 3].reshape(9, -1) for j in range(m)]
            for i in range(n)
        ]
    )


def super_tokens(pixels, weights):
    """Pixel by pixel into the tokens around its cell. pixels: [n, m, p, C]."""
    n, m, _, channels = pixels.shape
    total, share = np.zeros((n + 2, m + 2, channels)), np.zeros((n + 2, m + 2, 1))
    for i in range(n):
        for j in range(m):
            part = weights[i, j].T @ pixels[i, j]
            total[i : i + 3, j : j + 3] += part.reshape(3, 3, -1)
            share[i : i + 3, j : j + 3] += weights[i, j].sum(0).reshape(3, 3, 1)
    return (total / (share + 1e-12))[1:-1, 1:-1]


def pixels_of(x, mask, kwargs):
    """[B, n, m, h w, C] and the height and width of a cell."""
    size = kwargs.get("token_size", 2)
    h, w = (size, size) if isinstance(size, int) else size
    x = kept(x, mask)
    batch, height, width, channels = x.shape
    n, m = -(-height // h), -(-width // w)
    full = np.zeros((batch, n * h, m * w, channels))
    full[:, :height, :width] = x
    full = full.reshape(batch, n, h, m, w, channels).swapaxes(2, 3)
    return full.reshape(batch, n, m, h * w, channels), (h, w)


def association(x, params, mask, kwargs):
    pixels, _ = pixels_of(x, mask, kwargs)
    made = []
    for image in pixels:
        tokens, weights = image.mean(2), None
        for i in range(kwargs.get("iterations", 1)):
            if i:
                tokens = super_tokens(image, weights)
            scores = np.einsum("nmpc,nmkc->nmpk", image, cells_around(tokens))
            weights = softmax(scores / np.sqrt(x.shape[-1]))
        made.append(weights)
    return np.array(made)


def super_token(x, params, mask, kwargs):
    if kwargs.get("token_size") == 1:
        return whole(softmax_core)(x, params, mask, kwargs)
    held, (pixels, (h, w)) = kwargs["held"], pixels_of(x, mask, kwargs)
    tokens = [super_tokens(*pair) for pair in zip(pixels, held, strict=True)]
    tokens = whole(softmax_core)(np.array(tokens), params, None, kwargs)
    y = np.array(
        [
            np.einsum("nmpk,nmkc->nmpc", a, cells_around(s))
            for a, s in zip(held, tokens, strict=True)
        ]
    )
    batch, n, m, _, channels = y.shape
    y = y.reshape(batch, n, m, h, w, channels).swapaxes(2, 3)
    return y.reshape(batch, n * h, m * w, channels)[:, : x.shape[1], : x.shape[2]]


def maximum(x, step):
    """Of 3 x 3 around every position or every second one."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = range(0, x.shape[1], step), range(0, x.shape[2], step)
    picked = [
        [padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in columns] for i in rows
    ]
    return np.moveaxis(np.array(picked), 2, 0)


def global_queries(x, params, window):
    for i in range(len(params)):
        own = params[f"conv_{i}"]
        h = gelu(depthwise(x, own["dwc_kernel"]))
        s = gelu(dense(h.mean((1, 2), keepdims=True), own["squeeze"]))
        s = 1 / (1 + np.exp(-dense(s, own["excite"])))
        x = x + dense(h * s, own["proj"])
        x = x if x.shape[1:3] == window else maximum(x, 2)
    return x


def global_context(x, params, mask, kwargs):
    size = kwargs["window_size"]
    h, w = (size, size) if isinstance(size, int) else size
    q = global_queries(kept(x, mask), params["queries"], (h, w))
    y = np.zeros_like(x)
    for top in range(0, x.shape[1], h):
        for left in range(0, x.shape[2], w):
            at = (slice(None), slice(top, top + h), slice(left, left + w))
            k, v = projected(x[at], params, "kv", 2)
            part = None if mask is None else mask[at]
            o = relative_core(q, k, v, params, part, kwargs)
            y[at] = dense(o, params["proj"])
    return y


def unit(t):
    return t / np.maximum(np.sqrt((t**2).sum(-1, keepdims=True)), 1e-12)


def log_spaced(offset, trained):
    t = 8 * offset / max(trained - 1, 1)
    return math.copysign(math.log(abs(t) + 1) / math.log(8), t)


def bias_of_offsets(params, grid, keys, kwargs):
    """[h, H, W, h', w'] by an MLP; keys lie at the means of what they pool."""
    made = np.zeros((kwargs["num_heads"], *grid, *keys))
    trained = kwargs.get("trained_grid", grid)

    def middle(i, n, count):
        first, last = i * n // count, -(-(i + 1) * n // count)
        return (first + last - 1) / 2

    for y, x, v, u in np.ndindex(*grid, *keys):
        rows = log_spaced(y - middle(v, grid[0], keys[0]), trained[0])
        columns = log_spaced(x - middle(u, grid[1], keys[1]), trained[1])
        h = np.maximum(dense(np.array([rows, columns]), params["position_fc1"]), 0)
        made[:, y, x, v, u] = dense(h, params["position_fc2"])
    return made


def cosine_query(q, params, count):
    """q: [B, h, L, K]."""
    sharpness = np.log(1 + np.exp(params["temperature"]))[:, None, None]
    embedding = params["query_embedding"][:, None]
    return (unit(q) + embedding) * sharpness * np.log(np.maximum(count, 1))


def cosine_core(q, k, v, params, mask, kwargs):
    grid, keys = q.shape[1:3], k.shape[1:3]
    bias = bias_of_offsets(params, grid, keys, kwargs)
    bias = bias.reshape(kwargs["num_heads"], grid[0] * grid[1], -1)
    flat = (t.reshape(len(t), -1, t.shape[-1]) for t in (q, k, v))
    q_, k_, v_ = (heads(t, kwargs["num_heads"]) for t in flat)
    seen = np.ones(k.shape[:3], bool) if mask is None else mask
    seen = seen.reshape(len(q), 1, 1, -1)
    asked = cosine_query(q_, params, seen.sum(-1, keepdims=True))
    scores = asked @ unit(k_).swapaxes(-1, -2) + bias
    return joined(softmax(np.where(seen, scores, -1e300)) @ v_).reshape(q.shape)


def binned(x, weight, sides):
    """Means over bins of what has weight 1, and whether there is any."""
    batch, height, width, channels = x.shape
    small = np.zeros((batch, *sides, channels))
    found = np.zeros((batch, *sides), bool)
    for i, j in np.ndindex(*sides):
        rows = slice(i * height // sides[0], -(-(i + 1) * height // sides[0]))
        columns = slice(j * width // sides[1], -(-(j + 1) * width // sides[1]))
        at = (slice(None), rows, columns)
        count = weight[at].sum((1, 2))
        found[:, i, j] = count > 0
        total = (x[at] * weight[at][..., None]).sum((1, 2))
        small[:, i, j] = total / np.maximum(count, 1)[:, None]
    return small, found


def aggregated_heads(x, params, mask, kwargs):
    """[B, H, W, h, K], position by position."""
    count, size = kwargs["num_heads"], kwargs.get("window_size", 3)
    batch, height, width, channels = x.shape
    x = kept(x, mask)
    weight = np.ones(x.shape[:3]) if mask is None else mask.astype(float)
    ratio = kwargs.get("sr_ratio", 2)
    sides = kwargs.get("pool_size", (height // ratio, width // ratio))
    small, found = binned(gelu(dense(x, params["sr"])), weight, sides)
    small = layer_norm(small, params["norm"])
    split = (batch, height, width, count, channels // count)
    q = dense(x, params["q"]).reshape(split)
    k, v = (kept(t, mask).reshape(split) for t in projected(x, params, "kv", 2))
    far_k, far_v = (
        t.reshape(batch, -1, count, channels // count)
        for t in projected(small, params, "kv", 2)
    )
    found = found.reshape(batch, -1)
    bias = bias_of_offsets(params, (height, width), sides, kwargs)
    o, reach = np.zeros(split), size // 2
    for b, y, c in np.ndindex(batch, height, width):
        places = [
            (s, y + dy, c + dx)
            for s, (dy, dx) in enumerate(
                (i - reach, j - reach) for i in range(size) for j in range(size)
            )
            if 0 <= y + dy < height
            and 0 <= c + dx < width
            and weight[b, y + dy, c + dx]
        ]
        total = len(places) + found[b].sum()
        asked = cosine_query(q[b, y, c][None, :, None], params, total)[0, :, 0]
        for h in range(count):
            near = np.array([k[b, i, j, h] for _, i, j in places])
            near = near.reshape(-1, channels // count)
            which = [s for s, _, _ in places]
            scores = np.concatenate(
                [
                    unit(near) @ asked[h] + params["local_bias"][h, which],
                    np.where(
                        found[b],
                        unit(far_k[b, :, h]) @ asked[h] + bias[h, y, c].ravel(),
                        -1e300,
                    ),
                ]
            )
            weights = softmax(scores)
            extra = unit(q[b, y, c, h]) @ params["learnable_tokens"][h]
            extra = (extra + params["learnable_bias"][h])[which]
            values = np.array([v[b, i, j, h] for _, i, j in places])
            values = values.reshape(-1, channels // count)
            o[b, y, c, h] = (weights[: len(places)] + extra) @ values
            o[b, y, c, h] += weights[len(places) :] @ far_v[b, :, h]
    return o


def aggregated(x, params, mask, kwargs):
    o = aggregated_heads(x, params, mask, kwargs)
    return dense(o.reshape(x.shape), params["proj"])


def aggregated_mixture_of_head(x, params, mask, kwargs):
    """One shared head and others, of which the likeliest counts."""
    o = aggregated_heads(x, params, mask, kwargs)
    x = kept(x, mask)
    routed = softmax(dense(x, params["routed_gate"]))
    routed = (routed == routed.max(-1, keepdims=True)).astype(float)
    balance = 2 * softmax(dense(x, params["balance"]))
    gates = [balance[..., :1], balance[..., 1:] * routed]
    o = o * np.concatenate(gates, -1)[..., None]
    return dense(o.reshape(x.shape), params["proj"])


HEADS = {"num_heads": 2}
GRID = (2, 4, 6, 4)
FEW = {"position_features": 3}
HALO = {**HEADS, "block_size": 2, "halo_size": 1}

ROWS = [
    Row("halo", halo, HALO, GRID),
    Row("halo", halo, {**HALO, "halo_size": 2, "qkv_bias": True}, GRID),
    Row("channel", channel, HEADS, GRID),
    Row("super_token", super_token, HEADS, (2, 5, 4, 4), held=association),
    Row(
        "super_token",
        super_token,
        {**HEADS, "token_size": (2, 3), "iterations": 2, "qkv_bias": False},
        GRID,
        held=association,
    ),
    Row("super_token", super_token, {**HEADS, "token_size": 1}, (2, 3, 4, 4)),
    Row("global_context", global_context, {**HEADS, "window_size": 2}, (2, 4, 4, 4)),
    Row("global_context", global_context, {**HEADS, "window_size": (2, 3)}, GRID),
    Row("global_cosine", whole(cosine_core), {**HEADS, **FEW}, (2, 3, 4, 4)),
    Row(
        "global_cosine",
        whole(cosine_core),
        {**HEADS, **FEW, "trained_grid": (5, 3), "qkv_bias": False},
        (2, 3, 4, 4),
    ),
    Row("aggregated", aggregated, {**HEADS, **FEW}, (2, 4, 3, 4)),
    Row(
        "aggregated",
        aggregated,
        {**HEADS, **FEW, "pool_size": (2, 3), "trained_grid": (4, 4), "window_size": 5},
        (2, 3, 4, 4),
    ),
    Row(
        "aggregated_mixture_of_head",
        aggregated_mixture_of_head,
        {"num_heads": 4, **FEW, "shared_heads": 1, "active_heads": 1},
        (2, 4, 3, 8),
    ),
]
