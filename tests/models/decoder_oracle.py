"""A decoder in LLaMA's shape, in float64 NumPy from its equations.

Weights are (in, out); tokens are a list of one row. Positions turn pairs of channels as
complex numbers, queries see keys one by one.
"""

import numpy as np


def rms_norm(x, scale=1.0, epsilon=1e-6):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale


def turned(x, base):
    """x [L, K]: channels i and i + K / 2 are one complex number, of angle position *
    base**(-2 i / K)."""
    length, width = x.shape
    pairs = x[:, : width // 2] + 1j * x[:, width // 2 :]
    for position in range(length):
        for i in range(width // 2):
            pairs[position, i] *= np.exp(1j * position / base ** (2 * i / width))
    return np.concatenate([pairs.real, pairs.imag], -1)


def causal_attention(x, w_q, w_k, w_v, w_o, heads, base):
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    width = q.shape[-1] // heads
    result = np.zeros_like(q)
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        qh, kh = turned(q[:, own], base), turned(k[:, own], base)
        for n in range(len(x)):
            scores = np.exp(kh[: n + 1] @ qh[n] / np.sqrt(width))
            result[n, own] = scores / scores.sum() @ v[: n + 1, own]
    return result @ w_o


def swiglu(x, w_gate, w_up, w_down):
    gate = x @ w_gate
    return (gate / (1 + np.exp(-gate)) * (x @ w_up)) @ w_down


def decoder(tokens, table, layers, norm, head, heads, base=10000.0):
    """Logits [L, vocabulary].

    Args:
      table: [vocabulary, D], what the stream starts with.
      layers: dicts of weights (q, k, v, o, gate, up, down) and of functions: norms of
        what the branches read (norm1, norm2) and give (norm1_out, norm2_out).
      norm: the last one.  head: [D, vocabulary].
    """
    x = table[np.asarray(tokens)]
    for layer in layers:
        weights = (layer[name] for name in ("q", "k", "v", "o"))
        h = causal_attention(layer["norm1"](x), *weights, heads, base)
        x = x + layer["norm1_out"](h)
        weights = (layer[name] for name in ("gate", "up", "down"))
        x = x + layer["norm2_out"](swiglu(layer["norm2"](x), *weights))
    return norm(x) @ head
