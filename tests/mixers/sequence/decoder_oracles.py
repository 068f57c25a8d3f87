"""Mixers of published decoders in float64 NumPy, written from their equations."""

import numpy as np

from tests.mixers.oracles import dense, heads, joined, softmax, softmax_attention
from tests.mixers.sequence.oracles import grouped_query, normed, on_tokens, parts


def joint_projection(x, params, mask, kwargs):
    """`grouped_query` of the columns for queries, keys and values, in this order."""
    columns, count = params["qkv"]["kernel"].shape[-1], kwargs["num_heads"]
    width = columns // (count + 2 * kwargs["num_kv_heads"]) * count
    q, kv = ({k: v[..., s] for k, v in params["qkv"].items()} for s in cuts(width))
    return grouped_query(x, {**params, "q": q, "kv": kv}, mask, kwargs)


def cuts(width):
    return slice(width), slice(width, None)


def values_apart(x, params, mask, kwargs):
    """Softmax attention of a layer for queries and keys, and one for values."""
    both, values = params["qk"], params["v"]["kernel"]
    kernel = np.concatenate((both["kernel"], values), 1)
    bias = np.concatenate((both["bias"], np.zeros(values.shape[1])))
    qkv = {"kernel": kernel, "bias": bias}
    return softmax(x, {**params, "qkv": qkv}, mask, kwargs)


def turned_in_pairs(t):
    """t: [B, H, L, K]: position l turns channels 2 i and 2 i + 1 by l 10000^(-2i/K)."""
    out = np.empty(t.shape)
    for i in range(t.shape[-1] // 2):
        angle = np.arange(t.shape[2]) * 10000.0 ** (-2 * i / t.shape[-1])
        a, b = t[..., 2 * i], t[..., 2 * i + 1]
        out[..., 2 * i] = a * np.cos(angle) - b * np.sin(angle)
        out[..., 2 * i + 1] = b * np.cos(angle) + a * np.sin(angle)
    return out


@on_tokens
def soft_causal(x, params, mask, kwargs):
    """Weights of all keys, those behind a query times the rate."""
    q, k, v = (heads(t, kwargs["num_heads"]) for t in parts(x, params["qkv"], 3))
    q, k = map(turned_in_pairs, normed(q, k, params, kwargs))
    if mask is not None:  # of which every row has one
        v = np.where(mask[:, None, :, None], v, 0)
    weights = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
    if mask is not None:
        weights = np.where(mask[:, None, None], weights, 0)
    total, n = weights.sum(-1, keepdims=True), x.shape[1]
    rate = kwargs.get("soft_mask", 0.0)
    weights = weights * np.where(np.arange(n) <= np.arange(n)[:, None], 1, rate)
    if kwargs.get("renormalized"):
        total = weights.sum(-1, keepdims=True)
    return dense(joined(weights / total @ v), params["proj"])


def prefixed(x, params, mask, kwargs):
    """Row by row: softmax over the prefixes of its stream, then the tokens it sees."""
    count, groups = kwargs["num_heads"], kwargs["num_kv_heads"]
    examples, out = len(x) // kwargs.get("streams", 1), np.empty(x.shape)
    for row in range(len(x)):
        one = x[row : row + 1]
        q = heads(dense(one, params["q"]), count)
        k, v = (heads(t, groups) for t in parts(one, params["kv"], 2))
        q, k = normed(q, k, params, kwargs)
        first = (params[f"prefix_{n}"][row // examples] for n in ("key", "value"))
        first = [t.transpose(1, 0, 2)[None] for t in first]
        k, v = (np.concatenate(pair, 2) for pair in zip(first, (k, v), strict=True))
        seen = np.ones((x.shape[1], x.shape[1]), bool)
        seen = np.tril(seen) if kwargs.get("causal") else seen
        if mask is not None:
            seen = seen & mask[row]
            v = v.copy()
            v[:, :, -len(seen) :][:, :, ~mask[row]] = 0
            k = k.copy()
            k[:, :, -len(seen) :][:, :, ~mask[row]] = 0
        always = np.ones((x.shape[1], first[0].shape[2]), bool)
        seen = np.concatenate((always, seen), 1)
        k, v = (np.repeat(t, count // groups, 1) for t in (k, v))
        out[row] = dense(joined(softmax_attention(q, k, v, seen)), params["proj"])[0]
    return out
