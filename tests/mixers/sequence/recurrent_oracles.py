"""Liger, ParaRNN and hard attention in float64 NumPy, position by position.

As in oracles.py: `oracle(x, params, mask, kwargs) -> y` on plain dicts of arrays.
"""

import numpy as np

from tests.mixers.oracles import dense, heads, joined
from tests.mixers.sequence.oracles import (
    kept,
    normed,
    on_tokens,
    parts,
    rms,
    sigmoid,
    silu,
    softmaxed,
    visible,
)


def turned(t, base):
    """Heads [B, H, L, K] whose channel i turns with channel i + K / 2."""
    half = t.shape[-1] // 2
    angles = np.arange(t.shape[2])[:, None] * base ** (-np.arange(half) / half)
    z = (t[..., :half] + 1j * t[..., half:]) * np.exp(1j * angles)
    return np.concatenate((z.real, z.imag), -1)


def pooled(k, count):
    """Means of bins of channels, one after the other."""
    size, bins = k.shape[-1], []
    for i in range(count):
        start, end = (
            int(np.floor(i * size / count)),
            int(np.ceil((i + 1) * size / count)),
        )
        bins.append(sum(k[..., c] for c in range(start, end)) / (end - start))
    return np.stack(bins, -1)


def remembered(q, k, v, here, kwargs):
    """r of one head of one row [L, K], which forgets position by position."""
    form, size, out = kwargs.get("recurrence", "gla"), k.shape[-1], np.zeros(v.shape)
    slots = kwargs.get("num_slots", size)
    state = np.zeros((size, size))
    keys, values = np.zeros((size, slots)), np.zeros((slots, size))
    for t in range(len(q)):
        if form == "gsa":
            d = sigmoid(pooled(k[t], slots)) ** (1 / 16)
            if here[t]:
                keys = keys * d + np.outer(k[t], 1 - d)
                values = values * d[:, None] + np.outer(1 - d, v[t])
            out[t] = softmaxed(q[t] @ keys) @ values
            continue
        d = sigmoid(k[t]) ** (1 / 16 if form == "gla" else 1)
        added = softmaxed(k[t]) if form == "gla" else 1 - d
        if here[t]:
            state = d[:, None] * state + np.outer(added, v[t])
        out[t] = softmaxed(q[t]) @ state
    return out


@on_tokens
def liger(x, params, mask, kwargs):
    count = kwargs["num_heads"]
    groups = kwargs.get("num_kv_heads", count)
    if kwargs.get("joint"):  # as many heads of keys
        q, k, v = (heads(t, count) for t in parts(x, params["qkv"], 3))
    else:
        q = heads(dense(x, params["q"]), count)
        k, v = (heads(t, groups) for t in parts(x, params["kv"], 2))
    q, k = normed(q, k, params, kwargs)
    here = np.ones(x.shape[:2], bool) if mask is None else mask
    base = kwargs.get("rotary_base", 10000.0)
    (turned_q, turned_k), o = (turned(t, base) for t in (q, k)), np.zeros(q.shape)
    for b, h, t in np.ndindex(q.shape[:3]):
        g, start = h * groups // count, max(t - kwargs.get("window", 64), 0)
        near = slice(start, t + 1)
        if here[b, t]:
            scores = turned_k[b, g, near] @ turned_q[b, h, t] / np.sqrt(q.shape[-1])
            o[b, h, t] = softmaxed(scores, here[b, near]) @ v[b, g, near]
    for b, h in np.ndindex(q.shape[:2]):
        g = h * groups // count
        o[b, h] += remembered(q[b, h], k[b, g], v[b, g], here[b], kwargs)
    return dense(joined(o / 2), params["proj"])


def gru(state, u, params):
    (h,), (az, ar, an) = state, params["state_kernel"]
    z, r = sigmoid(az * h + u[0]), sigmoid(ar * h + u[1])
    n = np.tanh(an * h * r + u[2])
    return (z * n + (1 - z) * h,)


def lstm(state, u, params):
    (c, h), (af, ao, an) = state, params["state_kernel"]
    pf, po = params["peephole_kernel"]
    f, n = sigmoid(af * h + u[0] + pf * c), np.tanh(an * h + u[2])
    c = f * c + (1 - f) * n
    return c, sigmoid(ao * h + u[1] + po * c) * np.tanh(c)


@on_tokens
def pararnn(x, params, mask, kwargs):
    u, gate = parts(x, params["branches"], 2)
    u, taps, cell = kept(u, mask), params["conv_kernel"], params["cell"]
    conv = np.zeros(u.shape) + params["conv_bias"]
    for t in range(u.shape[1]):
        for back in range(min(t + 1, len(taps))):
            conv[:, t] += taps[len(taps) - 1 - back] * u[:, t - back]
    conv, count, width = silu(conv), kwargs["num_heads"], u.shape[-1]
    step, size = (lstm, 2) if kwargs.get("cell") == "lstm" else (gru, 1)
    out, block = np.zeros(u.shape), width // count
    for b in range(len(u)):
        state = (np.zeros(width),) * size
        for t in range(u.shape[1]):
            blocks = conv[b, t].reshape(count, block)
            given = [
                np.concatenate(
                    [blocks[h] @ cell["input_kernel"][h, :, g] for h in range(count)]
                )
                + cell["bias"][g]
                for g in range(3)
            ]
            if mask is None or mask[b, t]:
                state = step(state, given, cell)
            out[b, t] = state[-1]
    return dense(rms(out, 1e-6, params["norm"]["scale"]) * silu(gate), params["proj"])


@on_tokens
def hard(x, params, mask, kwargs):
    q, k, v = (heads(t, kwargs["num_heads"]) for t in parts(x, params["qkv"], 3))
    q, k = normed(q, k, params, kwargs)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    p = softmaxed(scores, visible(x.shape[1], mask, kwargs))
    for row in np.ndindex(p.shape[:3]):
        p[row][np.argsort(-p[row], kind="stable")[kwargs.get("keep", 30) :]] = 0
    o = p @ v
    o[:, list(kwargs.get("pruned_heads", ()))] = 0
    return dense(joined(o), params["proj"])
