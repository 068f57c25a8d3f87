"""Token mixers in float64 NumPy, written from their equations.

Each is `oracle(x, params, mask, kwargs) -> y` on plain dicts of arrays. They share no
code with normjax.
"""

import numpy as np


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0.0)


def heads(x, count):
    """[B, L, D] -> [B, H, L, K]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def joined(x):
    """[B, H, L, K] -> [B, L, D]."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def softmax_attention(q, k, v, visible=None, bias=0.0):
    """q, k, v: [B, H, L, K].  visible: bool, broadcastable to [B, H, N, M]."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + bias
    if visible is not None:
        scores = np.where(visible, scores, -1e300)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def relu_attention(q, k, v, epsilon=1e-6):
    """Linear attention of features, one query after the other."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for n in range(q.shape[2]):
        scores = (k * q[:, :, n, None]).sum(-1)
        total = scores.sum(-1, keepdims=True) + epsilon
        out[:, :, n] = (scores[..., None] * v).sum(2) / total
    return out


def depthwise(v, kernel):
    """v: [B, H, W, D].  kernel: [kh, kw, d]; channel i meets kernel i modulo d."""
    kh, kw, d = kernel.shape
    _, height, width, channels = v.shape
    padded = np.pad(v, ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2, (0, 0)))
    out = np.zeros(v.shape)
    for c in range(channels):
        for i in range(kh):
            for j in range(kw):
                window = padded[:, i : i + height, j : j + width, c]
                out[..., c] += kernel[i, j, c % d] * window
    return out


def softmax(x, params, mask, kwargs):
    shape, x = x.shape, x.reshape(x.shape[0], -1, x.shape[-1])
    q, k, v = np.split(dense(x, params["qkv"]), 3, -1)
    q, k, v = (heads(t, kwargs["num_heads"]) for t in (q, k, v))
    if "qk_norm" in kwargs:  # RMSNorm in the rows
        q, k = (
            t / np.sqrt((t**2).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"]
            for t, name in ((q, "q_norm"), (k, "k_norm"))
        )
    visible = np.ones((x.shape[1], x.shape[1]), bool)
    if kwargs.get("causal"):
        visible = np.tril(visible)
    if mask is not None:
        visible = visible & mask.reshape(x.shape[0], 1, 1, -1)
    o = joined(softmax_attention(q, k, v, visible))
    return dense(o, params["proj"]).reshape(shape)


def simplified_linear(q, k, v, params, mask, num_heads):
    """q, k, v: [B, H, W, D], before the rectifiers."""
    q = np.maximum(q, 0)
    k = np.maximum(k + params["positional_encoding"], 0)
    if mask is not None:
        k, v = k * mask[..., None], v * mask[..., None]
    flat = (heads(t.reshape(t.shape[0], -1, t.shape[-1]), num_heads) for t in (q, k, v))
    o = joined(relu_attention(*flat)).reshape(q.shape)
    return (
        o + depthwise(v, params["dwc_kernel"]) + np.tile(params["dwc_bias"], num_heads)
    )


def sla(x, params, mask, kwargs):
    q, k, v = np.split(dense(x, params["qkv"]), 3, -1)
    o = simplified_linear(q, k, v, params, mask, kwargs["num_heads"])
    return dense(o, params["proj"])
