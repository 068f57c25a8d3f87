"""Networks written in NumPy on the published names give the logits of ours.

Written from the papers, with PyTorch's layouts: images [B, C, H, W], (out, in) weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from normjax import convert, models
from normjax.convert.names import abstract_variables

SMALL = {"dims": (4, 8, 8, 16), "depths": (1, 2, 1, 1)}
SIDE = 32


def conv(x, state, name, stride, padding=0, depthwise=False):
    """x [B, C, H, W]; sums over the taps of the kernel."""
    w, b = state[f"{name}.weight"], state[f"{name}.bias"]
    x = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    side = w.shape[-1]
    rows, columns = ((n - side) // stride + 1 for n in x.shape[2:])
    y = np.zeros((len(x), len(w), rows, columns))
    for i in range(side):
        for j in range(side):
            t = x[:, :, i::stride, j::stride][:, :, :rows, :columns]
            tap = w[:, :, i, j]
            full = None if depthwise else np.einsum("bchw,oc->bohw", t, tap)
            y += t * tap[..., None] if full is None else full
    return y + b[:, None, None]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(x, state, name, epsilon):
    """LayerNorm, or the batch branch of PRepBN, over the last axis."""
    if f"{name}.norm2.alpha" in state:
        name = f"{name}.norm2"
        g, b, m, v = (
            state[f"{name}.bn.{k}"]
            for k in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - m) / np.sqrt(v + 1e-5) * g + b + state[f"{name}.alpha"] * x
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def mlp(x, state, name):
    h = linear(x, state, f"{name}.fc1")
    return linear(h * (1 + erf(h / np.sqrt(2))) / 2, state, f"{name}.fc2")


def tokens(x):
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def image(x, rows, columns):
    return x.transpose(0, 2, 1).reshape(len(x), -1, rows, columns)


def heads_of(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attend(q, k, v, heads):
    q, k, v = (heads_of(t, heads) for t in (q, k, v))
    a = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    a = np.exp(a - a.max(-1, keepdims=True))
    o = a / a.sum(-1, keepdims=True) @ v
    return o.transpose(0, 2, 1, 3).reshape(len(o), o.shape[2], -1)


def pvt(state, x, heads, depths):
    """The original PVT: reductions 8, 4, 2, 1; a class token in the last stage."""
    for s, (depth, count) in enumerate(zip(depths, heads, strict=True), 1):
        x = conv(x, state, f"patch_embed{s}.proj", 4 if s == 1 else 2)
        side, ratio = x.shape[2], 8 >> (s - 1)
        x = norm(tokens(x), state, f"patch_embed{s}.norm", 1e-5)
        if s == 4:
            token = np.repeat(state["cls_token"], len(x), 0)
            x = np.concatenate([token, x], 1)
        x = x + state[f"pos_embed{s}"]
        for i in range(depth):
            name = f"block{s}.{i}"
            h = reduced = norm(x, state, f"{name}.norm1", 1e-6)
            if ratio > 1:
                small = conv(image(h, side, side), state, f"{name}.attn.sr", ratio)
                reduced = norm(tokens(small), state, f"{name}.attn.norm", 1e-5)
            k, v = np.split(linear(reduced, state, f"{name}.attn.kv"), 2, -1)
            o = attend(linear(h, state, f"{name}.attn.q"), k, v, count)
            x = x + linear(o, state, f"{name}.attn.proj")
            x = x + mlp(norm(x, state, f"{name}.norm2", 1e-6), state, f"{name}.mlp")
        x = x if s == 4 else image(x, side, side)
    return linear(norm(x, state, "norm", 1e-6)[:, 0], state, "head")


def inside_stripe(q, k, v, state, name, heads):
    """One stripe: q, k, v [B, C, h, w]."""
    rows, columns = q.shape[2:]
    o = conv(v, state, f"{name}.get_v", 1, 1, depthwise=True)
    q, k, flat = (tokens(t) for t in (q, k, v))
    if f"{name}.positional_encoding" not in state:
        return o + image(attend(q, k, flat, heads), rows, columns)
    k = k + state[f"{name}.positional_encoding"]
    q, k, flat = (
        heads_of(t, heads) for t in (np.maximum(q, 0), np.maximum(k, 0), flat)
    )
    weights = q @ k.swapaxes(-1, -2)
    a = weights @ flat / (weights.sum(-1, keepdims=True) + 1e-6)
    a = a.transpose(0, 2, 1, 3).reshape(len(v), -1, v.shape[1])
    o = o + image(a, rows, columns)
    per_head = v.reshape(-1, v.shape[1] // heads, rows, columns)
    return o + conv(per_head, state, f"{name}.dwc", 1, 2, depthwise=True).reshape(
        o.shape
    )


def stripes(maps, shape, *args):
    """`inside_stripe` on every stripe of that shape."""
    (h, w), o = shape, np.zeros_like(maps[0])
    for r in range(0, o.shape[2], h):
        for c in range(0, o.shape[3], w):
            area = ..., slice(r, r + h), slice(c, c + w)
            o[area] = inside_stripe(*(t[area] for t in maps), *args)
    return o


def cswin(state, x, heads, depths, splits):
    for s, (depth, count) in enumerate(zip(depths, heads, strict=True), 1):
        if s == 1:
            x, name = conv(x, state, "stage1_conv_embed.0", 4, 2), "stage1_conv_embed.2"
        else:
            x, name = conv(x, state, f"merge{s - 1}.conv", 2, 1), f"merge{s - 1}.norm"
        side, split = x.shape[2], splits[s - 1]
        x = norm(tokens(x), state, name, 1e-5)
        for i in range(depth):
            name = f"stage{s}.{i}"
            qkv = linear(norm(x, state, f"{name}.norm1", 1e-5), state, f"{name}.qkv")
            maps = [image(t, side, side) for t in np.split(qkv, 3, -1)]
            shapes = [(side, side)] if side <= split else [(side, split), (split, side)]
            parts = []
            for b, shape in enumerate(shapes):
                own = [np.split(t, len(shapes), 1)[b] for t in maps]
                args = state, f"{name}.attns.{b}", count // len(shapes)
                parts.append(stripes(own, shape, *args))
            x = x + linear(tokens(np.concatenate(parts, 1)), state, f"{name}.proj")
            x = x + mlp(norm(x, state, f"{name}.norm2", 1e-5), state, f"{name}.mlp")
        x = x if s == 4 else image(x, side, side)
    return linear(norm(x, state, "norm", 1e-5).mean(1), state, "head")


def random_state(model, rng):
    """Values of either sign; variances above 0."""

    def value(path, leaf):
        if leaf.dtype == np.int32:
            return np.zeros((), np.int32)
        values = rng.standard_normal(leaf.shape)
        if path[-1].key == "var":
            return 0.5 + np.abs(values)
        return 0.5 * values / np.prod(leaf.shape[:-1]) ** 0.5

    abstract = abstract_variables(model, (SIDE, SIDE, 3))
    return jax.tree_util.tree_map_with_path(value, abstract)


@pytest.mark.parametrize(
    ("preset", "network", "heads", "arguments"),
    [
        ("pvt_tiny", pvt, (1, 2, 2, 4), ()),
        ("cswin_tiny", cswin, (2, 2, 4, 4), ((1, 2, 7, 7),)),
        ("slab_cswin_tiny", cswin, (2, 2, 4, 4), ((56, 28, 7, 7),)),
    ],
)
def test_same_logits(preset, network, heads, arguments):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 3, SIDE, SIDE))
    with jax.enable_x64(True):
        model = models.build(preset, num_classes=5, num_heads=heads, **SMALL)
        variables = random_state(model, rng)
        state = convert.to_torch(model, variables, (SIDE, SIDE))
        ours = jnp.asarray(images.transpose(0, 2, 3, 1))
        actual = jax.jit(model.apply)(variables, ours)
    expected = network(state, images, heads, SMALL["depths"], *arguments)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11 * scale)
