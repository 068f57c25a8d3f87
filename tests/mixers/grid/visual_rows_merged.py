"""More rows of visual networks: what merges tokens, carries them or splits channels."""

import numpy as np

from tests.mixers.grid.rows import (
    kept,
    layer_norm,
    projected,
    softmax_core,
    visible_keys,
)
from tests.mixers.grid.visual_rows import binned, gelu, maximum
from tests.mixers.oracles import dense, depthwise, heads, joined, softmax_attention
from tests.mixers.row import Row


def conv3(v, params, name):
    return depthwise(v, params[f"{name}_kernel"]) + params.get(f"{name}_bias", 0.0)


def inception(x, params, mask, kwargs):
    side, count = kwargs.get("pool_size", 2), kwargs["attention_heads"]
    width = x.shape[-1]
    low = count * width // kwargs["num_heads"]
    half, x = (width - low) // 2, kept(x, mask)
    weight = np.ones(x.shape[:3]) if mask is None else mask.astype(float)
    c = gelu(conv3(dense(x[..., :half], params["conv_in"]), params, "conv"))
    hidden = np.where(weight[..., None] > 0, x[..., half : 2 * half], -np.inf)
    m = gelu(dense(kept(maximum(hidden, 1), mask), params["max_out"]))
    sides = x.shape[1] // side, x.shape[2] // side
    small, found = binned(x[..., 2 * half :], weight, sides)
    q, k, v = projected(small, params, "qkv", 3)
    found = None if mask is None else found
    a = softmax_core(q, k, v, params, found, {"num_heads": count})
    a = np.kron(a, np.ones((1, side, side, 1)))
    h = kept(np.concatenate([c, m, a], -1), mask)
    return dense(h + conv3(h, params, "fuse"), params["proj"])


def strided(x, params, side, mask):
    """norm(conv) of blocks of side x side, and which have any valid position."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // side, side, width // side, side, channels)
    kernel = params["sr"]["kernel"]
    small = np.einsum("bhiwjc,ijcd->bhwd", blocks, kernel) + params["sr"]["bias"]
    if mask is not None:
        cells = (batch, height // side, side, width // side, side)
        mask = mask.reshape(cells).any((2, 4))
    return layer_norm(small, params["norm"]), mask


def factorization(x, params, mask, kwargs):
    """Window by window, with reflected indices."""
    count, size = kwargs["num_heads"], kwargs["window_size"]
    ratio, channels = kwargs.get("sr_ratio", 1), x.shape[-1]
    shares = (2, 7, 7) if ratio > 1 else (1, 7)
    widths = [channels // sum(shares) * share for share in shares]
    x, first = kept(x, mask), widths[0]
    q = dense(x, params["q"])
    small, seen = strided(x[..., :first], params, ratio, mask)
    k, v = projected(small, params, "kv", 2)
    v = kept(v, seen)
    v = v + conv3(v, params, "whole_value")
    outputs = [softmax_core(q[..., :first], k, v, params, seen, {"num_heads": 1})]
    local = dense(conv3(x[..., first:], params, "local"), params["local_point"])
    local = kept(local, mask)
    batch, height, width, _ = x.shape
    split = q[..., first:].reshape(batch, height, width, count, -1)
    start = 0
    for i, total in enumerate(widths[1:]):
        gap, name, each = ratio if i else 1, f"windows_{i}", total // count
        span, part = gap * (size - 1) + 1, local[..., start : start + total]
        query = split[..., start // count : (start + total) // count]

        def reflected(n, side):
            return n if n < side else 2 * (side - 1) - n

        means = np.zeros((batch, size, size, total))
        for r, c in np.ndindex(size, size):
            picked = [
                part[
                    :,
                    reflected(top + gap * r, height),
                    reflected(left + gap * c, width),
                ]
                for top in range(0, height, span)
                for left in range(0, width, span)
            ]
            row = np.stack(picked, 1).reshape(batch, len(picked), count, each)
            if kwargs["averaging"] == "paper":
                mean = row.mean(1)
            else:
                row = row.transpose(0, 2, 1, 3).reshape(batch, count, -1)
                mean = np.stack(
                    [s.mean(-1) for s in np.split(row, each, -1)],
                    -1,
                )
            means[:, r, c] = mean.reshape(batch, total)
        h = dense(means.reshape(batch, size, size, count, each), params[f"{name}_mean"])
        k, v = projected(h, params, f"{name}_kv", 2)
        k, v = (t.reshape(batch, size, size, total) for t in (k, v))
        v = v + conv3(v, params, f"{name}_value")
        query = query.reshape(batch, height, width, total)
        outputs.append(softmax_core(query, k, v, params, None, kwargs))
        start += total
    return dense(np.concatenate(outputs, -1), params["proj"])


def grouped(rows, order, sizes):
    """Groups of positions in that order: a list of [B, groups, size, C]."""
    length = len(order[0])
    ends = {2: (0.5, 1), 3: (0.25, 0.75, 1)}[len(sizes)]
    ends = [0, *(round(e * length) for e in ends)]
    parts = []
    for i, size in enumerate(sizes):
        picked = [r[o[ends[i] : ends[i + 1]]] for r, o in zip(rows, order, strict=True)]
        parts.append(np.array(picked).reshape(len(rows), -1, size, rows.shape[-1]))
    return parts


def self_guided(x, params, mask, kwargs):
    """Without significance: in order, but for padding, which comes first."""
    count, sizes, x = kwargs["num_heads"], kwargs["group_sizes"], kept(x, mask)
    valid = np.ones(x.shape[:3], bool) if mask is None else mask
    by_rows, by_columns = kwargs.get("significance", (np.zeros(x.shape[:3]),) * 2)
    keys, values, seen = [], [], []
    for name, turn, by in (("kv1", False, by_rows), ("kv2", True, by_columns)):
        maps = (
            x,
            valid[..., None].astype(float),
            np.where(valid, by, -np.inf)[..., None],
        )
        maps = (np.swapaxes(t, 1, 2) if turn else t for t in maps)
        rows, found, by = (t.reshape(len(x), -1, t.shape[-1]) for t in maps)
        order = [sorted(range(len(b)), key=lambda n, b=b: (b[n, 0], n)) for b in by]
        tokens = [
            np.einsum("bgsc,s->bgc", part, params[f"group_{i + 1}"]["kernel"][:, 0])
            + params[f"group_{i + 1}"]["bias"]
            for i, part in enumerate(grouped(rows, order, sizes))
        ]
        found = np.concatenate(
            [part.any((2, 3)) for part in grouped(found, order, sizes)], 1
        )
        k, v = projected(np.concatenate(tokens, 1), params, name, 2)
        keys.append(heads(k, count // 2))
        values.append(heads(v, count // 2))
        seen.append(np.repeat(found[:, None, None], count // 2, 1))
    q = dense(x, params["q"])
    k, v, seen = (np.concatenate(t, 1) for t in (keys, values, seen))
    flat = heads(q.reshape(len(x), -1, q.shape[-1]), count)
    o = joined(softmax_attention(flat, k, v, seen)).reshape(q.shape)
    return dense(o + conv3(dense(x, params["lepe_in"]), params, "lepe"), params["proj"])


def self_guided_hybrid(x, params, mask, kwargs):
    side, size, x = kwargs["sr_ratio"], kwargs["window_size"], kept(x, mask)
    half = {"num_heads": kwargs["num_heads"] // 2}
    small, seen = strided(x, params, side, mask)
    k, v = projected(gelu(small), params, "kv1", 2)
    whole = softmax_core(dense(x, params["q1"]), k, v, params, seen, half)
    q, (k, v) = dense(x, params["q2"]), projected(x, params, "kv2", 2)
    near = np.zeros_like(q)
    for top in range(0, x.shape[1], size):
        for left in range(0, x.shape[2], size):
            at = (slice(None), slice(top, top + size), slice(left, left + size))
            part = None if mask is None else mask[at]
            near[at] = softmax_core(q[at], k[at], v[at], params, part, half)
    o = np.concatenate((whole, near), -1)
    return dense(o + conv3(dense(x, params["lepe_in"]), params, "lepe"), params["proj"])


def locally_enhanced(x, params, mask, kwargs):
    x = kept(x, mask)
    o = softmax_core(*projected(x, params, "qkv", 3), params, mask, kwargs)
    return dense(o + conv3(dense(x, params["lepe_in"]), params, "lepe"), params["proj"])


def forward_cross(x, params, mask, kwargs):
    """With the tokens that kwargs have, [B, M, C]."""
    q, k, v = projected(x, params, "qkv", 3)
    batch, height, width, _ = x.shape
    q, k, v = (t.reshape(batch, height * width, -1) for t in (q, k, v))
    bias = np.zeros((1, kwargs["num_heads"], height * width, height * width))
    for i, j in np.ndindex(height * width, height * width):
        rows = abs(i // width - j // width)
        bias[0, :, i, j] = params["offset_bias"][rows, abs(i % width - j % width)]
    seen, tokens = visible_keys(mask), kwargs.get("tokens")
    if tokens is not None:
        scaled = layer_norm(tokens * params["cross_scale"], params["cross_norm"])
        _, more_k, more_v = projected(scaled, params, "qkv", 3)
        k, v = np.concatenate((k, more_k), 1), np.concatenate((v, more_v), 1)
        own = np.broadcast_to(
            params["cross_bias"].T[None, :, None], (*bias.shape[:3], tokens.shape[1])
        )
        bias = np.concatenate((bias, own), -1)
    q, k, v = (heads(t, kwargs["num_heads"]) for t in (q, k, v))
    o = joined(softmax_attention(q, k, v, seen, bias))
    return dense(o.reshape(x.shape), params["proj"])


HEADS = {"num_heads": 2}
GRID = (2, 4, 6, 4)
GUIDED = {**HEADS, "group_sizes": (2, 1)}

ROWS = [
    Row(
        "inception",
        inception,
        {"num_heads": 3, "attention_heads": 1},
        (2, 4, 2, 12),
    ),
    Row(
        "inception",
        inception,
        {"num_heads": 4, "attention_heads": 2, "pool_size": 1, "qkv_bias": False},
        (2, 3, 4, 8),
    ),
    Row(
        "factorization",
        factorization,
        {"num_heads": 1, "window_size": 2, "averaging": "paper", "sr_ratio": 2},
        (2, 4, 4, 16),
    ),
    Row(
        "factorization",
        factorization,
        {"num_heads": 7, "window_size": 3, "averaging": "code", "qkv_bias": False},
        (2, 5, 4, 8),
    ),
    Row(
        "factorization",
        factorization,
        {"num_heads": 2, "window_size": 3, "averaging": "code", "sr_ratio": 2},
        (2, 6, 4, 32),
    ),
    Row("self_guided", self_guided, GUIDED, (2, 4, 3, 4)),
    Row("self_guided", self_guided, {**HEADS, "group_sizes": (3, 2, 1)}, (2, 4, 3, 4)),
    Row(
        "self_guided_hybrid",
        self_guided_hybrid,
        {**HEADS, "sr_ratio": 2, "window_size": 2},
        (2, 4, 2, 4),
    ),
    Row("locally_enhanced", locally_enhanced, HEADS, (2, 3, 4, 4)),
    Row("forward_cross", forward_cross, HEADS, (2, 3, 4, 4)),
]
