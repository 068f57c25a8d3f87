"""Mixers of token sequences in float64 NumPy, written from their equations.

As in oracles.py: `oracle(x, params, mask, kwargs) -> y` on plain dicts of arrays. What
has a recurrence runs position by position, whatever form the library takes.
"""

import math

import numpy as np

from tests.mixers.oracles import dense, depthwise, heads, joined

erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def softmaxed(x, seen: np.ndarray | bool = True):
    """Over the last axis, where `seen` is True."""
    x = np.where(seen, x, -1e300)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms(x, epsilon, scale=1.0):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def parts(x, params, count):
    return np.split(dense(x, params), count, -1)


def kept(t, mask):
    """t [B, ..., X] with zeros where the mask [B, ...] is False."""
    return t if mask is None else np.where(mask[..., None], t, 0.0)


def normed(q, k, params, kwargs):
    """Queries and keys after `qk_norm`, which is RMSNorm in the rows."""
    if "qk_norm" not in kwargs:
        return q, k
    q = rms(q, 1e-6, params["q_norm"]["scale"])
    return q, rms(k, 1e-6, params["k_norm"]["scale"])


def on_tokens(mix):
    """An oracle of [B, L, D] for maps too, row by row."""

    def oracle(x, params, mask, kwargs):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        mask = None if mask is None else mask.reshape(tokens.shape[:2])
        return mix(tokens, params, mask, kwargs).reshape(x.shape)

    return oracle


# Every token weighs every other.


def visible(length, mask, kwargs):
    """bool, broadcastable to [B, H, N, M]."""
    seen = np.ones((1, 1, length, length), bool)
    if kwargs.get("causal"):
        seen = np.tril(seen)
    return seen if mask is None else seen & mask[:, None, None, :]


def weighed(q, k, v, mask, kwargs):
    """Softmax attention of heads [B, H, L, K]."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return softmaxed(scores, visible(q.shape[2], mask, kwargs)) @ v


def rectified(gated):
    @on_tokens
    def oracle(x, params, mask, kwargs):
        qkv = parts(x, params["qkv"], 3)
        q, k, v = (heads(t, kwargs["num_heads"]) for t in qkv)
        q, k = normed(q, k, params, kwargs)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        o = joined(np.maximum(scores * visible(x.shape[1], mask, kwargs), 0) @ v)
        y = rms(o, 1e-8, params["norm"]["scale"])
        if gated:
            y = y * sigmoid(params["gate"] * o)
        return dense(y, params["proj"])

    return oracle


@on_tokens
def grouped_query(x, params, mask, kwargs):
    """Head by head; `num_heads / num_kv_heads` after each other have one key."""
    count, groups = kwargs["num_heads"], kwargs["num_kv_heads"]
    q = heads(dense(x, params["q"]), count)
    k, v = (heads(t, groups) for t in parts(x, params["kv"], 2))
    q, k = normed(q, k, params, kwargs)
    own = [head * groups // count for head in range(count)]
    each = [
        weighed(q[:, [h]], k[:, [g]], v[:, [g]], mask, kwargs)
        for h, g in enumerate(own)
    ]
    return dense(joined(np.concatenate(each, 1)), params["proj"])


@on_tokens
def differential(x, params, mask, kwargs):
    count, (batch, length, width) = kwargs["num_heads"], x.shape
    size = width // (2 * count)
    q, k, v = parts(x, params["qkv"], 3)
    q, k = (t.reshape(batch, length, count, 2, size) for t in (q, k))
    q, k = normed(q, k, params, kwargs)
    start = 0.8 - 0.6 * np.exp(-0.3 * kwargs.get("layer", 0))
    first, second = (
        np.exp(params[f"lambda_q{n}"] @ params[f"lambda_k{n}"]) for n in (1, 2)
    )
    seen, out = visible(length, mask, kwargs)[:, 0], []
    for head in range(count):
        maps = [
            softmaxed(
                q[:, :, head, n] @ k[:, :, head, n].swapaxes(1, 2) / np.sqrt(size), seen
            )
            for n in (0, 1)
        ]
        value = v[:, :, 2 * size * head : 2 * size * (head + 1)]
        o = (maps[0] - (first - second + start) * maps[1]) @ value
        out.append((1 - start) * rms(o, 1e-5, params["norm"]["scale"]))
    return dense(np.concatenate(out, -1), params["proj"])


@on_tokens
def mixture_of_head(x, params, mask, kwargs):
    count, shared = kwargs["num_heads"], kwargs.get("shared_heads", 0)
    routed = count - shared
    active = kwargs.get("active_heads", (routed + 1) // 2)
    gates = np.ones((*x.shape[:2], count))
    if shared:
        p = softmaxed(dense(x, params["shared_gate"])) if shared > 1 else 1.0
        gates[..., :shared] = shared * p
    if routed:
        p = softmaxed(dense(x, params["routed_gate"]))
        for b, t in np.ndindex(x.shape[:2]):
            largest = np.argsort(-p[b, t], kind="stable")[:active]
            g = np.zeros(routed)
            g[largest] = active * p[b, t, largest] / p[b, t, largest].sum()
            gates[b, t, shared:] = g
    if shared and routed:
        balance = 2 * softmaxed(dense(x, params["balance"]))
        gates[..., :shared] *= balance[..., :1]
        gates[..., shared:] *= balance[..., 1:]
    q, k, v = (heads(t, count) for t in parts(x, params["qkv"], 3))
    q, k = normed(q, k, params, kwargs)
    o = weighed(q, k, v, mask, kwargs) * np.moveaxis(gates, 2, 1)[..., None]
    return dense(joined(o), params["proj"])


def token_parameters(x, params, kwargs):
    s = dense(x, params["key"])
    count, scores = s.shape[-1], kwargs.get("scores", "l2_norm_gelu")

    def unit(t):
        return t / np.sqrt((t**2).sum(-1, keepdims=True)) * np.sqrt(count)

    made = {
        "l2_norm_gelu": lambda: gelu(unit(s)),
        "gelu_l2_norm": lambda: unit(gelu(s)),
        "softmax": lambda: count * softmaxed(s),
    }
    return dense(made[scores](), params["value"])


@on_tokens
def pattention(x, params, mask, kwargs):
    qkv = (token_parameters(x, params[name], kwargs) for name in "qkv")
    q, k, v = (heads(t, kwargs["num_heads"]) for t in qkv)
    q, k = normed(q, k, params, kwargs)
    o = joined(weighed(q, k, v, mask, kwargs))
    return token_parameters(o, params["proj"], kwargs)


def slopes(count):
    """ALiBi: 2**(-8 h / H), with every second one of 2 H where H is no power of 2."""

    def plain(n):
        return [2.0 ** (-8 * h / n) for h in range(1, n + 1)]

    lower = 2 ** int(math.log2(count))
    return np.array((plain(lower) + plain(2 * lower)[::2])[:count])


def far(kind, s, distance, head, count, numbers):
    """A scaled score [B] of a key `distance` positions back."""

    def power(name):
        a, p = numbers[f"{name}_a"][head], numbers[f"{name}_p"][head]
        return a * distance**p if distance else 0.0

    if kind == "alibi":
        return s - slopes(count)[head] * distance
    if kind == "kerple_log":
        a, p = numbers["bias_a"][head], numbers["bias_p"][head]
        return s - p * np.log(1 + a * distance)
    if kind != "kerple_power":
        s = s * np.exp(-power("gain"))
    return s if kind == "kerple_power_gain" else s - power("bias")


def distant(kind):
    """Softmax attention that knows how far back a key is, score by score."""

    @on_tokens
    def oracle(x, params, mask, kwargs):
        count, numbers = kwargs["num_heads"], params.get("distance", {})
        q, k, v = (heads(t, count) for t in parts(x, params["qkv"], 3))
        q, k = normed(q, k, params, kwargs)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        for head, i, j in np.ndindex(scores.shape[1:]):
            s, distance = scores[:, head, i, j], max(i - j, 0)
            scores[:, head, i, j] = far(kind, s, distance, head, count, numbers)
        o = softmaxed(scores, visible(x.shape[1], mask, kwargs)) @ v
        return dense(joined(o), params["proj"])

    return oracle


# A state per head, or per channel, position by position.


def states(q, k, v, log_decay, mask):
    """S = diag(exp(g)) S + k v^T, o = S^T q; at padding S stays as it is.

    q, k: [B, H, L, K].  v: [B, H, L, V].  log_decay: broadcastable to k.
    """
    decay = np.exp(np.broadcast_to(log_decay, k.shape))
    state = np.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]))
    out = np.zeros(v.shape)
    for t in range(k.shape[2]):
        new = decay[:, :, t, :, None] * state + k[:, :, t, :, None] * v[:, :, t, None]
        here = True if mask is None else mask[:, t, None, None, None]
        state = np.where(here, new, state)
        out[:, :, t] = (state * q[:, :, t, :, None]).sum(2)
    return out


def log_decay(x, params):
    low = dense(dense(x, params["down"]), params["up"])
    return -np.log1p(np.exp(-low)) / 16


@on_tokens
def gated_linear(x, params, mask, kwargs):
    count = kwargs["num_heads"]
    q, k = (heads(t, count) for t in parts(x, params["qk"], 2))
    v, gate = parts(x, params["vg"], 2)
    q, k = normed(q, k, params, kwargs)
    g = heads(log_decay(x, params["log_decay"]), count)
    o = states(q / np.sqrt(q.shape[-1]), k, heads(v, count), g, mask)
    o = joined(rms(o, 1e-5, params["norm"]["scale"]))
    return dense(o * silu(gate), params["proj"])


def vig(x, params, mask, kwargs):
    shape, count = x.shape, kwargs["num_heads"]
    near = depthwise(kept(x, mask), params["conv_kernel"]) + bias_of(params)
    near = silu(near) if kwargs.get("conv_activation", True) else near
    near = near.reshape(len(x), -1, x.shape[-1])
    mask = None if mask is None else mask.reshape(near.shape[:2])
    joint, width = dense(near, params["qkv"]), near.shape[-1]
    keys = (joint.shape[-1] - width) // 2
    q, k, v = (heads(t, count) for t in np.split(joint, (keys, 2 * keys), -1))
    q, k = normed(q, k, params, kwargs)
    q = q / np.sqrt(q.shape[-1])
    g, back = np.split(log_decay(near, params["log_decay"]), 2, -1)
    o = states(q, k, v, heads(g, count), mask)
    q, k, v, g = (t[:, :, ::-1] for t in (q, k, v, heads(back, count)))
    mask = None if mask is None else mask[:, ::-1]
    o = o + states(q, k, v, g, mask)[:, :, ::-1]
    o = joined(rms(o / 2, 1e-5, params["norm"]["scale"]))
    share = sigmoid(dense(near, params["share"]))
    near = joined(rms(heads(near, count), 1e-5, params["local_norm"]["scale"]))
    o = share * o + (1 - share) * near
    o = silu(o) if kwargs.get("output_activation") else o
    return dense(o, params["proj"]).reshape(shape)


def bias_of(params):
    return params.get("conv_bias", 0.0)


def rates(kwargs):
    """The slopes of a layer, [H, 1, 1]."""
    layer, layers = kwargs.get("layer", 0), kwargs.get("num_layers", 1)
    depth = 1 - layer / max(layers - 1, 1) + 1e-5
    return (slopes(kwargs["num_heads"]) * depth).reshape(-1, 1, 1)


@on_tokens
def lightning(x, params, mask, kwargs):
    q, k, v = (heads(t, kwargs["num_heads"]) for t in parts(x, params["qkv"], 3))
    q, k = normed(q, k, params, kwargs)
    slope = np.float64(np.float32(rates(kwargs)))  # the released module holds float32
    o = joined(states(silu(q), silu(k), silu(v), -slope, mask))
    o = (o - o.mean(-1, keepdims=True)) / np.sqrt(o.var(-1, keepdims=True) + 1e-5)
    o = o * params["norm"]["scale"] + params["norm"]["bias"]
    gate = dense(dense(x, params["gate_down"]), params["gate_up"])
    return dense(sigmoid(gate) * o, params["proj"])


@on_tokens
def transnormer(x, params, mask, kwargs):
    *qkv, u = parts(x, params["qkvu"], 4)
    q, k, v = (heads(t, kwargs["num_heads"]) for t in qkv)
    q, k = normed(q, k, params, kwargs)
    q, k = silu(q), silu(k)
    if kwargs.get("lrpe", kwargs.get("layer", 0) == 0):
        angles = np.arange(x.shape[1])[:, None] * params["theta"][:, None]
        q, k = (
            np.concatenate((t * np.cos(angles), t * np.sin(angles)), -1) for t in (q, k)
        )
    o = joined(states(q, k, v, -rates(kwargs), mask))
    return dense(rms(o, 1e-6) * u, params["proj"])


@on_tokens
def rg_lru(x, params, mask, kwargs):
    gate, u = parts(x, params["branches"], 2)
    taps, u = params["conv_kernel"], kept(u, mask)
    blocks = (*u.shape[:2], kwargs["num_heads"], -1)
    conv = np.zeros(u.shape) + params["conv_bias"]
    for t in range(u.shape[1]):
        for back in range(min(t + 1, len(taps))):
            conv[:, t] += taps[len(taps) - 1 - back] * u[:, t - back]
    unit = params["rg_lru"]
    r, i = (
        sigmoid(
            np.einsum(
                "blhi,hij->blhj", conv.reshape(blocks), unit[f"{name}_gate_kernel"]
            )
            + unit[f"{name}_gate_bias"]
        ).reshape(u.shape)
        for name in ("recurrence", "input")
    )
    a = np.exp(-8 * r * np.log1p(np.exp(unit["a_param"])))
    h, out, begun = np.zeros(u[:, 0].shape), np.zeros(u.shape), np.zeros((len(u), 1))
    for t in range(u.shape[1]):
        scale = np.where(begun, np.sqrt(1 - a[:, t] ** 2), 1.0)
        new = a[:, t] * h + scale * i[:, t] * conv[:, t]
        here = np.ones((len(u), 1), bool) if mask is None else mask[:, t, None]
        h, begun = np.where(here, new, h), begun + here
        out[:, t] = h
    wide = gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2
    return dense(wide * out, params["proj"])


@on_tokens
def local_attention(x, params, mask, kwargs):
    """Query by query; the first quarter of a head turns with the second."""
    window, (_, length, width) = kwargs.get("window", 1024), x.shape
    count, size = kwargs["num_heads"], width // kwargs["num_heads"]
    q = heads(dense(x, params["q"]), count)
    k, v = (t[:, None] for t in parts(x, params["kv"], 2))
    q, k = normed(q, k, params, kwargs)
    quarter = size // 4
    turns = np.arange(length)[:, None] * 10000.0 ** (-np.arange(quarter) / quarter)

    def turned(t):
        z = (t[..., :quarter] + 1j * t[..., quarter : 2 * quarter]) * np.exp(1j * turns)
        return np.concatenate((z.real, z.imag, t[..., 2 * quarter :]), -1)

    q, k, o = turned(q), turned(k), np.zeros(q.shape)
    for t in range(length):
        near = slice(max(t - window, 0), t + 1)
        scores = (q[:, :, t, None] * k[:, :, near]).sum(-1) / np.sqrt(size)
        seen = True if mask is None else mask[:, None, near]
        o[:, :, t] = (softmaxed(scores, seen)[..., None] * v[:, :, near]).sum(2)
    return dense(joined(o), params["proj"])


# Feature maps: a gate, rotations by row and column.


def turned_on_grid(t, height, width):
    """Channels 2 i and 2 i + 1 of heads [B, H, L, K], as complex numbers."""
    rates = 10000.0 ** -np.linspace(0, 1, t.shape[-1] // 4)
    angles = np.zeros((height * width, t.shape[-1] // 2))
    for y, x in np.ndindex(height, width):
        angles[y * width + x] = [*(y * rates), *(x * rates)]
    z = (t[..., ::2] + 1j * t[..., 1::2]) * np.exp(1j * angles)
    return np.stack((z.real, z.imag), -1).reshape(t.shape)


def augmented(attend):
    def oracle(x, params, mask, kwargs):
        shape, count = x.shape, kwargs["num_heads"]
        q, k, v, gate = parts(x, params["qkvo"], 4)
        v = kept(v, mask)
        near = depthwise(v, params["lepe_kernel"]) + params["lepe_bias"]
        q, k, v = (heads(t.reshape(len(t), -1, t.shape[-1]), count) for t in (q, k, v))
        q, k = normed(q, k, params, kwargs)
        valid = np.ones((shape[0], q.shape[2]), bool)
        valid = valid if mask is None else mask.reshape(valid.shape)
        o = joined(attend(q, k, v, valid, shape[1:3]))
        return dense((o.reshape(gate.shape) + near) * gate, params["proj"])

    return oracle


@augmented
def rala_softmax(q, k, v, valid, grid):
    q, k = turned_on_grid(q, *grid), turned_on_grid(k, *grid)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return softmaxed(scores, valid[:, None, None]) @ v


@augmented
def rala(q, k, v, valid, grid):
    """Image by image, of the positions that are tokens."""

    def positive(t):
        return np.where(t > 0, t, np.expm1(np.minimum(t, 0))) + 1

    q, k, out = positive(q), positive(k), np.zeros(v.shape)
    turned_q = turned_on_grid(q, *grid)
    for b, head in np.ndindex(q.shape[:2]):
        here = valid[b]
        count, keys = here.sum(), k[b, head][here]
        score = keys @ q[b, head][here].mean(0) / np.sqrt(q.shape[-1])
        weighted = np.zeros(k[b, head].shape)
        weighted[here] = count * softmaxed(score)[:, None] * keys
        turned_k = turned_on_grid(weighted, *grid)
        for n in range(q.shape[2]):
            total = weighted[here].mean(0) @ q[b, head, n] + 1e-6
            mean = (turned_k[here] @ turned_q[b, head, n] @ v[b, head][here]) / count
            out[b, head, n] = mean / total
    return out
