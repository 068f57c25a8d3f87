"""Long convolutions, convolved weights and graphs in float64 NumPy, by loops."""

import numpy as np

from tests.mixers.oracles import dense, heads, joined, softmax_attention


def filters(params, name, length, longest):
    h = params["positions"][:length]
    for i in range(3):
        h = np.sin(params["frequency"] * dense(h, params[f"{name}_{i}"]))
    h = dense(h, params[f"{name}_3"])
    for i in range(length):
        for c in range(h.shape[1]):
            slow, fast = np.log(0.01) / 1.5, np.log(0.01) / 0.3
            rate = slow + (fast - slow) * c / max(h.shape[1] - 1, 1)
            h[i, c] *= np.exp(-abs(rate) * i / max(longest - 1, 1))
    return h


def long_convolution(u, params, longest):
    length = u.shape[1]
    y, k = u * params["skip"], filters(params, "forward", length, longest)
    r = np.zeros(k.shape)
    if "reverse_0" in params:
        r = filters(params, "reverse", length, longest)
    for t in range(length):
        for s in range(length):
            if s <= t:
                y[:, t] += k[t - s] * u[:, s]
            else:
                y[:, t] += r[s - t - 1] * u[:, s]
    return y


def monarch(x, params, mask, kwargs):
    shape, x = x.shape, x.reshape(x.shape[0], -1, x.shape[-1])
    valid = np.ones(x.shape[:2], bool) if mask is None else mask.reshape(x.shape[:2])
    valid, longest = valid[..., None], kwargs["max_length"]
    x = np.where(valid, x, 0)
    u = np.where(valid, dense(x, params["in_proj"]), 0)
    u = np.pad(u, ((0, 0), (2, 0), (0, 0)))
    taps = [u[:, i : i + x.shape[1]] * params["short_kernel"][i] for i in range(3)]
    a, b, v = np.split(sum(taps) + params["short_bias"], 3, -1)
    y = b * long_convolution(np.where(valid, a * v, 0), params["conv"], longest)
    if kwargs.get("residual", True):
        y += long_convolution(x, params["residual_conv"], longest)
    return dense(y, params["proj"]).reshape(shape)


def normalized(t, params, name):
    """RMSNorm of heads [B, H, L, K], if there is one."""
    if name not in params:
        return t
    root = np.sqrt((t**2).mean(-1, keepdims=True) + 1e-6)
    return t / root * params[name]["scale"]


def task_weights(params, num_heads, task):
    """One number after the other of each head's picture [K, C]."""
    weights = params["kernel"]
    if task == 0:
        return weights
    taps, shift, gate = (
        params[f"task_{name}"][task - 1] for name in ("convolution", "shift", "gate")
    )
    out, size, (inputs, outputs) = np.zeros(weights.shape), len(taps), weights.shape
    width, half = outputs // num_heads, len(taps) // 2
    for head in range(num_heads):
        picture = weights[:, head * width : (head + 1) * width].T
        padded = np.pad(picture, half)
        for row in range(width):
            for column in range(inputs):
                window = padded[row : row + size, column : column + size]
                total = (window * taps[..., head]).sum() + shift[head]
                kept = picture[row, column] / (1 + np.exp(-gate[head]))
                out[column, head * width + row] = total + kept
    return out


def task_convolved(x, params, mask, kwargs):
    shape, count = x.shape, kwargs["num_heads"]
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    task = kwargs.get("task", 0)
    q, k, v = (heads(x @ task_weights(params[n], count, task), count) for n in "qkv")
    q, k = normalized(q, params, "q_norm"), normalized(k, params, "k_norm")
    visible = None if mask is None else mask.reshape(len(mask), 1, 1, -1)
    o = joined(softmax_attention(q, k, v, visible))
    return dense(o, params["proj"]).reshape(shape)


def graph_transformer(x, params, mask, kwargs, adjacency=None, edges=None):
    """Node by node, over its edges; beside edges, the new ones as well."""
    shape, count = x.shape, kwargs["num_heads"]
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    batch, nodes, width = x.shape
    valid = np.ones((batch, nodes), bool) if mask is None else mask.reshape(batch, -1)
    q, k, v = (heads(t, count) for t in np.split(dense(x, params["qkv"]), 3, -1))
    q, k = normalized(q, params, "q_norm"), normalized(k, params, "k_norm")
    o, epsilon = np.zeros(v.shape), kwargs.get("epsilon", 0.0)
    told = None if edges is None else dense(edges, params["edges"])
    new = np.zeros((batch, nodes, nodes, width))
    for b in range(batch):
        for h in range(count):
            at = slice(h * v.shape[-1], (h + 1) * v.shape[-1])
            for i in range(nodes):
                total = 0.0
                for j in range(nodes):
                    edge = i != j if adjacency is None else adjacency[b, i, j]
                    if not (edge and valid[b, i] and valid[b, j]):
                        continue
                    scores = q[b, h, i] * k[b, h, j] / np.sqrt(v.shape[-1])
                    if told is not None:
                        scores = scores * told[b, i, j, at]
                    new[b, i, j, at] = scores
                    weight = np.exp(np.clip(scores.sum(), -5, 5))
                    total += weight
                    o[b, h, i] += weight * v[b, h, j]
                if total:
                    o[b, h, i] /= total + epsilon
    y = dense(joined(o), params["proj"]).reshape(shape)
    return y if edges is None else (y, dense(new, params["edge_proj"]))
