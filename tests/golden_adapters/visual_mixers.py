"""Adapters of the mixers of published visual networks, and of the blocks around."""

import functools

import numpy as np

from normjax import mixers, norms
from normjax.activations import ACTIVATIONS
from normjax.models.block import Block, feeding, mixing, positioning
from normjax.models.layers import PositionConv
from normjax.models.mlps import MLP
from normjax.models.placement import BranchPlacement
from tests.golden_adapters import layer_case
from tests.golden_adapters.run import Case, applied, pure
from tests.golden_adapters.translate import (
    as_grid,
    depthwise,
    grid_of,
    inside,
    linear,
    maps,
    of,
    pointwise,
    translated,
    transposed,
)
from tests.golden_adapters.vision_mixers import NORM, has_bias, offsets

QKV = {**linear("qkv", "qkv"), **linear("proj", "proj")}
LAST = maps(lambda t: np.moveaxis(t, 1, -1))
"""[B, C, H, W] as ours."""


@layer_case("halo")
def halo(data, meta):
    """Keys and values stand head by head there."""
    kwargs, inputs = meta["kwargs"], data["x"].shape[1]
    heads, keys = kwargs.get("num_heads", 8), len(data["param_q.weight"])
    values = len(data["param_kv.weight"]) - keys
    names = ("num_heads", "block_size", "halo_size", "stride")
    derived = ("dim", "dim_out", "dim_head", "qk_ratio", "feat_size")
    checked = {k: kwargs[k] for k in derived if k in kwargs}
    checked |= {"qkv_bias": has_bias(data, kwargs, "q"), "avg_down": False}
    checked |= {"scale_pos_embed": False, "dim": inputs}
    arguments = translated(kwargs, {k: k for k in names}, checked)
    mixer = mixers.build(
        "halo",
        qkv_features=keys,
        value_features=values,
        qkv_bias=checked["qkv_bias"],
        **{"num_heads": heads, **arguments},
    )()
    order = np.arange(keys + values).reshape(heads, -1)
    each = keys // heads
    order = np.concatenate((order[:, :each].ravel(), order[:, each:].ravel()))
    layout = {
        "q/kernel": pointwise("q.weight"),
        "q/bias": of("q.bias"),
        "kv/kernel": of("kv.weight", to=lambda w: w[order, :, 0, 0].T),
        "kv/bias": of("kv.bias", to=lambda b: b[order]),
        "height": of("pos_embed.height_rel"),
        "width": of("pos_embed.width_rel"),
    }
    return Case(applied(mixer), layout, **LAST)


@layer_case("gcvit_global")
def global_context(data, meta):
    """The windows of an image lie in one row of them here: none meets another."""
    kwargs, heads = meta["kwargs"], meta["kwargs"]["num_heads"]
    size, images = kwargs["window_size"], len(data["q_global"])
    checked = {"dim": data["x"].shape[-1], "qkv_bias": has_bias(data, kwargs)}
    names = {"num_heads": "num_heads", "window_size": "window_size"}
    arguments = translated(kwargs, names, checked)
    arguments |= {"window_size": (size, size), "qkv_bias": checked["qkv_bias"]}
    mixer = mixers.build("global_context", **arguments)()

    def row(t):
        """[B n, tokens, C] as [B, size, n size, C]."""
        t = t.reshape(images, -1, size, size, t.shape[-1])
        return np.swapaxes(t, 1, 2).reshape(images, size, -1, t.shape[-1])

    def queries(t):
        return np.swapaxes(t[:, 0], 1, 2).reshape(images, size, size, -1)

    def apply(params, x, queries):
        return mixer.apply({"params": params}, x, queries=queries)

    assert data["q_global"].shape[2] == heads
    layout = {**linear("qkv", "kv"), **linear("proj", "proj"), **offsets((size, size))}
    inputs = {"x": of("x", to=row), "queries": of("q_global", to=queries)}
    return Case(pure(apply), layout, inputs=inputs, outputs={"y": of("y", to=row)})


@layer_case("gcvit_query_gen")
def global_queries(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[1]
    size = kwargs["window_size"]
    checked = {k: kwargs[k] for k in ("image_resolution", "num_heads")}
    checked |= {"dim": width, "input_resolution": data["x"].shape[2]}
    translated(kwargs, {"window_size": "window_size"}, checked)
    layout = {}
    for i in range(sum(k.endswith(".conv.3.weight") for k in data) // 2):
        layout |= inside(
            f"conv_{i}",
            {
                "dwc_kernel": depthwise("0.weight"),
                "squeeze/kernel": transposed("2.fc.0.weight"),
                "excite/kernel": transposed("2.fc.2.weight"),
                "proj/kernel": pointwise("3.weight"),
            },
            f"to_q_global.{i}.conv.",
        )

    def queries(t):
        t = np.swapaxes(t[:, 0], 1, 2)
        return t.reshape(len(t), size, size, -1)

    return Case(
        applied(mixers.GlobalQueries((size, size))),
        layout,
        inputs=LAST["inputs"],
        outputs={"y": of("y", to=queries)},
    )


@layer_case("davit_channel")
def channel(data, meta):
    names = {"num_heads": "num_heads"}
    bias = has_bias(data, meta["kwargs"])
    checked = {"dim": data["x"].shape[-1], "qkv_bias": bias}
    arguments = translated(meta["kwargs"], names, checked)
    mixer = mixers.build("channel", qkv_bias=bias, **arguments)()
    return Case(applied(mixer), QKV)


def mlp_of(hidden):
    activation = ACTIVATIONS.factory("gelu")
    return functools.partial(MLP, hidden=hidden, activation=activation)


@layer_case("davit_channel_block")
def channel_block(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    bias = has_bias(data, kwargs)
    checked = {"dim": width, "qkv_bias": bias, "mlp_ratio": kwargs.get("mlp_ratio")}
    arguments = translated(kwargs, {"num_heads": "num_heads"}, checked)
    mixer = mixers.build("channel", qkv_bias=bias, **arguments)
    mlp = mlp_of(int(width * kwargs.get("mlp_ratio", 4.0)))
    norm, pre = norms.build("layer_norm", epsilon=1e-5), BranchPlacement(pre=True)
    block = Block(
        (
            positioning("position1", PositionConv),
            mixing(norm, mixer, pre),
            positioning("position2", PositionConv),
            feeding(norm, mlp, pre),
        )
    )
    layout = {
        **inside("norm1", NORM, "norm1."),
        **inside("norm2", NORM, "norm2."),
        **inside("mixer", QKV, "attn."),
        **linear("mlp.fc1", "mlp/fc1"),
        **linear("mlp.fc2", "mlp/fc2"),
    }
    for i in (0, 1):
        layout |= {
            f"position{i + 1}/dwc_kernel": depthwise(f"cpe.{i}.proj.weight"),
            f"position{i + 1}/dwc_bias": of(f"cpe.{i}.proj.bias"),
        }
    return Case(applied(block), layout, **maps(as_grid(*grid_of(data, meta))))


def by_head(heads: int, parts: int = 3):
    """Channels ordered (head, part, channel) as (part, head, channel)."""

    def ours(a):
        split = a.reshape(heads, parts, -1, *a.shape[1:])
        return np.swapaxes(split, 0, 1).reshape(a.shape)

    return ours


@layer_case("super_token")
def super_token(data, meta):
    kwargs, bias = meta["kwargs"], has_bias(data, meta["kwargs"])
    names = {"num_heads": "num_heads", "n_iter": "iterations"}
    checked = {"dim": data["x"].shape[1], "qkv_bias": bias}
    checked["stoken_size"] = kwargs["stoken_size"]
    arguments = translated(kwargs, names, checked)
    arguments["token_size"] = tuple(kwargs["stoken_size"])
    mixer = mixers.build("super_token", qkv_bias=bias, **arguments)()
    ours, name = by_head(kwargs["num_heads"]), "stoken_refine"
    layout = {
        "qkv/kernel": of(f"{name}.qkv.weight", to=lambda w: ours(w[:, :, 0, 0]).T),
        "qkv/bias": of(f"{name}.qkv.bias", to=ours),
        "proj/kernel": pointwise(f"{name}.proj.weight"),
        "proj/bias": of(f"{name}.proj.bias"),
    }
    fixed = ("*param_unfold.weights", "*param_fold.weights")  # of the neighbours
    return Case(applied(mixer), layout, unused=fixed, **LAST)


@layer_case("iformer_mixer")
def inception(data, meta):
    names = ("num_heads", "attention_head", "pool_size")
    names = {k: k.replace("attention_head", "attention_heads") for k in names}
    bias = has_bias(data, meta["kwargs"])
    checked = {"dim": data["x"].shape[-1], "qkv_bias": bias}
    arguments = translated(meta["kwargs"], names, checked)
    mixer = mixers.build("inception", qkv_bias=bias, **arguments)()
    layout = {
        "conv_in/kernel": pointwise("high_mixer.conv1.weight"),
        "conv_kernel": depthwise("high_mixer.proj1.weight"),
        "max_out/kernel": pointwise("high_mixer.proj2.weight"),
        "max_out/bias": of("high_mixer.proj2.bias"),
        **linear("low_mixer.qkv", "qkv"),
        "fuse_kernel": depthwise("conv_fuse.weight"),
        "proj/kernel": pointwise("proj.weight"),
        "proj/bias": of("proj.bias"),
    }
    return Case(applied(mixer), layout)
