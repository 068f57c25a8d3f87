"""Adapters of the mixers of feature maps and of the blocks around them."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from normjax import mixers, norms
from normjax.activations import ACTIVATIONS
from normjax.mixers.cores import FocusedLinear, SimplifiedLinear, Softmax
from normjax.mixers.grid.cross_shaped_window import Stripes
from normjax.models.block import Block, feeding, mixing
from normjax.models.mlps import MLP, DepthwiseMLP
from normjax.models.placement import BranchPlacement
from tests.golden_adapters import layer_case
from tests.golden_adapters.run import Case, applied
from tests.golden_adapters.translate import (
    as_grid,
    conv,
    depthwise,
    flat,
    grid_of,
    inside,
    linear,
    maps,
    of,
    pointwise,
    translated,
    transposed,
)

QKV = {**linear("qkv", "qkv"), **linear("proj", "proj")}
DWC = {"dwc_kernel": depthwise("dwc.weight"), "dwc_bias": of("dwc.bias")}
LEPE = {"lepe_kernel": depthwise("get_v.weight"), "lepe_bias": of("get_v.bias")}
NORM = {"scale": of("weight"), "bias": of("bias")}
SCALE = {"scale": flat("scale")}
LINEAR_CORE = {"kernel_size": "kernel_size", "num_heads": "num_heads"}
FOCUSED_CORE = {**LINEAR_CORE, "focusing_factor": "focusing_factor"}


def table(height, width):
    """The table of positions, which is ours by rows and columns."""
    shape = (height, width, -1)
    name = "positional_encoding"
    return {name: of(name, to=lambda t: t.reshape(shape))}


def offsets(window):
    """Rows of the reference's table, of (2h - 1)(2w - 1), as our two dimensions."""
    h, w = window
    shape, name = (2 * h - 1, 2 * w - 1, -1), "relative_position_bias"
    return {name: of(f"{name}_table", to=lambda t: t.reshape(shape))}


def has_bias(data, kwargs, layer="qkv"):
    """Whether the projection has a bias; the argument, if given, must agree."""
    bias = any(k.endswith(f"{layer}.bias") for k in data)
    assert kwargs.get("qkv_bias", bias) == bias
    return bias


def left_over_scale(data):
    """Keys of a parameter that was left over from focused attention."""
    keys = [k for k in data if k.endswith("scale")]
    assert not any(data[k].any() for k in keys if k.startswith("dparam_"))
    return tuple(keys)


@layer_case("sla_deit")
def sla_deit(data, meta):
    grid = grid_of(data, meta)
    checked = {"dim": data["x"].shape[-1]}
    names = {"num_heads": "num_heads", "qkv_bias": "qkv_bias"}
    mixer = mixers.build("sla", **translated(meta["kwargs"], names, checked))()
    layout = {**QKV, **DWC, **table(*grid)}
    return Case(applied(mixer), layout, **maps(as_grid(*grid)))


@layer_case("swin_window")
def swin_window(data, meta):
    kwargs, (height, width), shift = meta["kwargs"], grid_of(data, meta), meta["shift"]
    h, w = window = tuple(kwargs["window_size"])
    bias, names = has_bias(data, kwargs), {"num_heads": "num_heads"}
    checked = {"dim": data["x"].shape[-1], "window_size": [h, w], "qkv_bias": bias}
    given = translated(kwargs, names, checked)
    given |= {"window_size": window, "shift": shift, "qkv_bias": bias}
    mixer = mixers.build("window", **given)()

    def image(t):
        """The windows put together, the shift undone."""
        t = t.reshape(-1, height // h, width // w, h, w, t.shape[-1])
        t = t.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, t.shape[-1])
        return np.roll(t, (shift, shift), (1, 2))

    # The mask is ours to make.
    layout = {**QKV, **offsets(window)}
    return Case(applied(mixer), layout, unused=("mask",), **maps(image))


@layer_case("sla_swin", "focused_swin")
def linear_swin(data, meta):
    kwargs, (h, w) = meta["kwargs"], grid_of(data, meta)
    focused, bias = meta["variant"] == "focused_swin", has_bias(data, kwargs)
    checked = {"dim": data["x"].shape[-1], "window_size": [h, w], "qkv_bias": bias}
    if not focused:  # taken and ignored there
        checked["focusing_factor"] = kwargs.get("focusing_factor")
    mixer = mixers.build(
        "window_focused_linear" if focused else "window_sla",
        window_size=(h, w),
        qkv_bias=bias,
        **translated(kwargs, FOCUSED_CORE if focused else LINEAR_CORE, checked),
    )()
    layout = {**QKV, **DWC, **table(h, w), **SCALE}
    return Case(applied(mixer), layout, **maps(as_grid(h, w)))


REDUCTION = {
    **linear("q", "q"),
    **linear("kv", "kv"),
    **linear("proj", "proj"),
    "sr/kernel": conv("sr.weight"),
    "sr/bias": of("sr.bias"),
    **inside("norm", NORM, "norm."),
}


@layer_case("pvt_sra", "pvtv2_linear_sra", "sla_pvt", "focused_pvt")
def spatial_reduction(data, meta):
    kwargs, grid = meta["kwargs"], grid_of(data, meta)
    bias, layout = has_bias(data, kwargs, "q"), dict(REDUCTION)
    arguments = {"num_heads": "num_heads", "sr_ratio": "sr_ratio"}
    checked = {"dim": data["x"].shape[-1], "qkv_bias": bias}
    checked["linear"] = kwargs.get("linear", False)
    key, ratio = "spatial_reduction", kwargs.get("sr_ratio", 1)
    if meta["variant"] in ("sla_pvt", "focused_pvt"):
        checked["num_patches"] = grid[0] * grid[1]
        layout |= {**DWC, **table(grid[0] // ratio, grid[1] // ratio), **SCALE}
        if meta["variant"] == "sla_pvt":
            key, arguments = f"{key}_sla", {**arguments, **LINEAR_CORE}
            checked["focusing_factor"] = kwargs.get("focusing_factor")  # ignored there
        else:
            key, arguments = f"{key}_focused_linear", {**arguments, **FOCUSED_CORE}
    elif kwargs.get("linear"):  # pools to one size, whatever the ratio
        key = "linear_spatial_reduction"
        checked["sr_ratio"] = ratio
        del arguments["sr_ratio"]
        layout["sr/kernel"] = pointwise("sr.weight")
    arguments = translated(kwargs, arguments, checked)
    mixer = mixers.build(key, qkv_bias=bias, **arguments)()
    return Case(applied(mixer), layout, unused=("H", "W"), **maps(as_grid(*grid)))


class OfProjected(nn.Module):
    """A part of a mixer that takes [q | k | v] as it stands."""

    inner: nn.Module

    def __call__(self, x):
        return self.inner(*jnp.split(x, 3, -1))


@layer_case("cswin_lepe", "sla_cswin", "focused_cswin")
def stripes(data, meta):
    kwargs, side = meta["kwargs"], meta["kwargs"]["resolution"]
    split, width = kwargs["split_size"], data["qkv"].shape[-1]
    stripe = {-1: (side, side), 0: (side, split), 1: (split, side)}[kwargs["idx"]]
    assert stripe == (meta["H_sp"], meta["W_sp"])
    checked = {
        "dim": width,
        "dim_out": width,
        **{k: kwargs[k] for k in ("resolution", "idx", "split_size")},
    }
    layout, unused = {**LEPE, **DWC, **table(*stripe)}, ()
    arguments, kind = {"num_heads": "num_heads"}, Softmax
    if meta["variant"] == "focused_cswin":
        layout |= SCALE
        kind, arguments = FocusedLinear, FOCUSED_CORE
    if meta["variant"] == "sla_cswin":
        kind, arguments, unused = SimplifiedLinear, LINEAR_CORE, left_over_scale(data)
        checked["focusing_factor"] = kwargs.get("focusing_factor")  # ignored there
    arguments = translated(kwargs, arguments, checked)
    module = OfProjected(Stripes(lambda: kind(**arguments), stripe))
    grid = as_grid(side, side)
    return Case(
        applied(module),
        inside("inner", layout),
        inputs={"x": of("qkv", to=lambda t: grid(np.concatenate(list(t), -1)))},
        outputs={"y": of("y", to=grid)},
        unused=unused,
    )


def block_of(mixer, hidden):
    """Pre-norm block with LayerNorm and GELU."""
    norm, pre = norms.build("layer_norm", epsilon=1e-5), BranchPlacement(pre=True)
    activation = ACTIVATIONS.factory("gelu")
    mlp = functools.partial(MLP, hidden=hidden, activation=activation)
    return Block((mixing(norm, mixer, pre), feeding(norm, mlp, pre)))


BLOCK = {
    **inside("norm1", NORM, "norm1."),
    **inside("norm2", NORM, "norm2."),
    **linear("mlp.fc1", "mlp/fc1"),
    **linear("mlp.fc2", "mlp/fc2"),
}


@layer_case("swin_block", "sla_swin_block")
def swin_block(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    height, breadth = kwargs["input_resolution"]
    side = min(kwargs["window_size"], height, breadth)
    usual = "L" if meta["variant"] == "sla_swin_block" else "S"
    window, linear_type = (side, side), kwargs.get("attn_type", usual) == "L"
    checked = {
        "dim": width,
        "qkv_bias": has_bias(data, kwargs),
        **{k: kwargs.get(k) for k in ("input_resolution", "mlp_ratio", "attn_type")},
    }
    arguments = {"window_size": "window_size", "shift_size": "shift"}
    core = LINEAR_CORE if linear_type else {"num_heads": "num_heads"}
    mixer = mixers.build(
        "window_sla" if linear_type else "window",
        qkv_bias=has_bias(data, kwargs),
        **translated(kwargs, {**arguments, **core}, checked),
    )
    own = {**QKV, **(DWC | table(*window) if linear_type else offsets(window))}
    layout = {**BLOCK, **inside("mixer", own, "attn.")}
    block = block_of(mixer, int(width * kwargs.get("mlp_ratio", 4.0)))
    return Case(applied(block), layout, **maps(as_grid(height, breadth)))


@layer_case("cswin_block", "sla_cswin_block")
def cswin_block(data, meta):
    kwargs, width, side = meta["kwargs"], data["x"].shape[-1], meta["kwargs"]["reso"]
    usual = "L" if meta["variant"] == "sla_cswin_block" else "S"
    linear_type = kwargs.get("attn_type", usual) == "L"
    one = kwargs.get("last_stage") or kwargs["split_size"] == side
    split = side if one else kwargs["split_size"]
    checked = {
        "dim": width,
        "qkv_bias": has_bias(data, kwargs),
        **{k: kwargs.get(k) for k in ("reso", "mlp_ratio", "attn_type")},
        **{k: kwargs.get(k) for k in ("last_stage", "split_size")},
    }
    core = LINEAR_CORE if linear_type else {"num_heads": "num_heads"}
    mixer = mixers.build(
        "cross_shaped_window_sla" if linear_type else "cross_shaped_window",
        qkv_bias=has_bias(data, kwargs),
        split_size=split,
        **translated(kwargs, core, checked),
    )
    own = dict(QKV)
    branches = {"vertical": (side, split), "horizontal": (split, side)}
    branches = {"whole": (side, side)} if one else branches
    for i, (name, stripe) in enumerate(branches.items()):
        own |= inside(name, {**LEPE, **DWC, **table(*stripe)}, f"attns.{i}.")
    layout = {**BLOCK, **inside("mixer", own)}
    block = block_of(mixer, int(width * kwargs.get("mlp_ratio", 4.0)))
    unused, grid = left_over_scale(data) if linear_type else (), as_grid(side, side)
    return Case(applied(block), layout, unused=unused, **maps(grid))


@layer_case("pvtv2_mlp_dwconv")
def depthwise_mlp(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    arguments = translated(
        kwargs,
        {"hidden_features": "hidden", "linear": "rectify"},
        {"in_features": width, "out_features": width},
    )
    mlp = DepthwiseMLP(
        **{"hidden": width, **arguments}, activation=ACTIVATIONS.factory("gelu")
    )
    layout = {
        **linear("fc1", "fc1"),
        **linear("fc2", "fc2"),
        "dwc_kernel": depthwise("dwconv.dwconv.weight"),
        "dwc_bias": of("dwconv.dwconv.bias"),
    }
    grid = maps(as_grid(*grid_of(data, meta)))
    return Case(applied(mlp), layout, unused=("H", "W"), **grid)


@layer_case("poolformer_pool")
def pooling(data, meta):
    arguments = translated(meta["kwargs"], {"pool_size": "pool_size"})
    mixer = mixers.build("pooling", **arguments)()
    return Case(applied(mixer), **maps(lambda t: np.moveaxis(t, 1, -1)))


@layer_case("rala", "rala_softmax")
def rala(data, meta):
    checked = {"dim": data["x"].shape[1]}
    arguments = translated(meta["kwargs"], {"num_heads": "num_heads"}, checked)
    mixer = mixers.build(meta["variant"], **arguments)()
    layout = {
        "qkvo/kernel": pointwise("qkvo.weight"),
        "qkvo/bias": of("qkvo.bias"),
        "lepe_kernel": depthwise("lepe.weight"),
        "lepe_bias": of("lepe.bias"),
        "proj/kernel": pointwise("proj.weight"),
        "proj/bias": of("proj.bias"),
    }
    last = maps(lambda t: np.moveaxis(t, 1, -1))
    return Case(applied(mixer), layout, unused=("sin", "cos"), **last)


@layer_case("vig_gla")
def vig_gla(data, meta):
    names = {
        "expand_k": "expand_k",
        "num_heads": "num_heads",
        "gate_low_rank_dim": "gate_rank",
        "use_bias_in_dwconv": "conv_bias",
    }
    given, width = meta["kwargs"], data["x"].shape[-1]
    checked = {"mode": given["mode"], "d_model": width}
    checked |= {"expand_v": 1.0, "fuse_norm": False}
    arguments = translated(given, names, checked)
    mixer = mixers.build("vig", **arguments)()
    layout = {
        "conv_kernel": depthwise("in_proj.0.weight"),
        "conv_bias": of("in_proj.0.bias"),
        **linear("qkv_proj", "qkv"),
        "log_decay/down/kernel": transposed("gk_proj.0.weight"),
        **linear("gk_proj.1", "log_decay/up"),
        "norm/scale": flat("g_norm.weight"),
        "local_norm/scale": flat("l_norm.weight"),
        **linear("g_proj", "share"),
        **linear("o_proj", "proj"),
    }
    return Case(applied(mixer), layout, **maps(as_grid(*grid_of(data, meta))))
