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
from tests.golden_adapters import layer_runner
from tests.golden_adapters.families import Unconditional
from tests.golden_adapters.mixers import linear, run_once

WITHOUT_EFFECT = {
    "attn_drop": 0,
    "proj_drop": 0,
    "drop": 0,
    "drop_path": 0,
    "qk_scale": None,
    "norm_layer": None,
    "act_layer": None,
}
"""Arguments of the references that change nothing at these values."""

DWC = {
    "dwc.weight": ("dwc_kernel", lambda w: w[:, 0].transpose(1, 2, 0)),
    "dwc.bias": ("dwc_bias", np.asarray),
}
LEPE = {
    "get_v.weight": ("lepe_kernel", DWC["dwc.weight"][1]),
    "get_v.bias": ("lepe_bias", np.asarray),
}
SCALE = {"scale": ("scale", lambda s: s.reshape(-1))}
LINEAR_CORE = {"kernel_size": "kernel_size", "num_heads": "num_heads"}
FOCUSED_CORE = {**LINEAR_CORE, "focusing_factor": "focusing_factor"}


def translated(kwargs, names, checked):
    """The arguments of ours that the reference's stand for; none is left over.

    Args:
      names: argument of the reference -> of ours.
      checked: other arguments and the only value that they may have.
    """
    checked = {**WITHOUT_EFFECT, **checked}
    assert not set(kwargs) - set(names) - set(checked), (kwargs, names)
    for name in set(kwargs) & set(checked):
        assert kwargs[name] == checked[name], (name, kwargs[name], checked[name])
    return {ours: kwargs[name] for name, ours in names.items() if name in kwargs}


def with_maps(data, to_ours):
    """The data with inputs, outputs and their gradients in our layout."""
    maps = {k: to_ours(data[k]) for k in ("x", "dx", "y", "dy")}
    return {**data, **maps}


def grid_of(data, meta):
    """(H, W), which some files keep in the meta and some among the arrays."""
    return tuple(int(data[k] if k in data else meta[k]) for k in ("H", "W"))


def as_grid(height, width):
    """Function from [B, H * W, C] to [B, H, W, C]."""
    return lambda t: t.reshape(-1, height, width, t.shape[-1])


def table(height, width):
    """The table of positions, which is ours by rows and columns."""
    return {
        "positional_encoding": (
            "positional_encoding",
            lambda t: t.reshape(height, width, -1),
        )
    }


def inside(path, names, prefix=""):
    """Names of a submodule's parameters: reference prefix -> our path."""
    return {f"{prefix}{k}": (f"{path}/{v}", f) for k, (v, f) in names.items()}


def has_bias(data, kwargs, layer="qkv"):
    """Whether the projection has a bias; the argument, if given, must agree."""
    bias = any(k.endswith(f"{layer}.bias") for k in data)
    assert kwargs.get("qkv_bias", bias) == bias
    return bias


def offsets(window):
    """Rows of the reference's table, of (2h - 1)(2w - 1), as our two dimensions."""
    h, w = window
    shape = (2 * h - 1, 2 * w - 1, -1)
    return {
        "relative_position_bias_table": (
            "relative_position_bias",
            lambda t: t.reshape(shape),
        )
    }


@layer_runner("swin_window")
def swin_window(data, meta, tolerance):
    kwargs, (height, width), shift = meta["kwargs"], grid_of(data, meta), meta["shift"]
    h, w = window = tuple(kwargs["window_size"])
    arguments = translated(
        kwargs,
        {"num_heads": "num_heads"},
        {
            "dim": data["x"].shape[-1],
            "window_size": list(window),
            "qkv_bias": has_bias(data, kwargs),
        },
    )
    mixer = mixers.build(
        "window",
        window_size=window,
        shift=shift,
        qkv_bias=has_bias(data, kwargs),
        **arguments,
    )()

    def image(t):
        """The windows put together, the shift undone."""
        t = t.reshape(-1, height // h, width // w, h, w, t.shape[-1])
        t = t.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, t.shape[-1])
        return np.roll(t, (shift, shift), (1, 2))

    names = {**linear("qkv", "qkv"), **linear("proj", "proj"), **offsets(window)}
    run_once(with_maps(data, image), meta, tolerance, mixer, names, grid=False)


@layer_runner("sla_swin", "focused_swin")
def linear_swin(data, meta, tolerance):
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
    names = {**linear("qkv", "qkv"), **linear("proj", "proj"), **DWC, **table(h, w)}
    names |= SCALE if focused else {}
    data = with_maps(data, as_grid(h, w))
    run_once(data, meta, tolerance, mixer, names, grid=False)


CONV = {
    "sr.weight": ("sr/kernel", lambda w: w.transpose(2, 3, 1, 0)),
    "sr.bias": ("sr/bias", np.asarray),
}
NORM = {"weight": ("scale", np.asarray), "bias": ("bias", np.asarray)}
REDUCTION = {
    **linear("q", "q"),
    **linear("kv", "kv"),
    **linear("proj", "proj"),
    **CONV,
    **inside("norm", NORM, "norm."),
}


@layer_runner("pvt_sra", "pvtv2_linear_sra", "sla_pvt", "focused_pvt")
def spatial_reduction(data, meta, tolerance):
    kwargs, grid = meta["kwargs"], grid_of(data, meta)
    bias, names = has_bias(data, kwargs, "q"), dict(REDUCTION)
    arguments = {"num_heads": "num_heads", "sr_ratio": "sr_ratio"}
    checked = {"dim": data["x"].shape[-1], "qkv_bias": bias}
    checked["linear"] = kwargs.get("linear", False)
    key, ratio = "spatial_reduction", kwargs.get("sr_ratio", 1)
    if meta["variant"] in ("sla_pvt", "focused_pvt"):
        checked["num_patches"] = grid[0] * grid[1]
        names |= {**DWC, **table(grid[0] // ratio, grid[1] // ratio)}
        if meta["variant"] == "sla_pvt":
            key, arguments = f"{key}_sla", {**arguments, **LINEAR_CORE}
            checked["focusing_factor"] = kwargs.get("focusing_factor")  # ignored there
        else:
            key, arguments = f"{key}_focused_linear", {**arguments, **FOCUSED_CORE}
            names |= SCALE
    elif kwargs.get("linear"):  # pools to one size, whatever the ratio
        key = "linear_spatial_reduction"
        checked["sr_ratio"] = ratio
        del arguments["sr_ratio"]
        names["sr.weight"] = ("sr/kernel", lambda w: w[:, :, 0, 0].T)
    arguments = translated(kwargs, arguments, checked)
    mixer = mixers.build(key, qkv_bias=bias, **arguments)()
    data = with_maps(data, as_grid(*grid))
    run_once(data, meta, tolerance, mixer, names, grid=False)


class OfProjected(nn.Module):
    """A part of a mixer that takes [q | k | v] as it stands."""

    inner: nn.Module

    def __call__(self, x, *, train=False):
        del train
        return self.inner(*jnp.split(x, 3, -1))


@layer_runner("cswin_lepe", "sla_cswin", "focused_cswin")
def stripes(data, meta, tolerance):
    kwargs, side = meta["kwargs"], meta["kwargs"]["resolution"]
    split, width = kwargs["split_size"], data["qkv"].shape[-1]
    stripe = {-1: (side, side), 0: (side, split), 1: (split, side)}[kwargs["idx"]]
    assert stripe == (meta["H_sp"], meta["W_sp"])
    checked = {
        "dim": width,
        "dim_out": width,
        **{k: kwargs[k] for k in ("resolution", "idx", "split_size")},
    }
    names, arguments, kind = dict(LEPE), {"num_heads": "num_heads"}, Softmax
    if meta["variant"] != "cswin_lepe":
        names |= {**DWC, **table(*stripe), **SCALE}
        kind, arguments = FocusedLinear, FOCUSED_CORE
    if meta["variant"] == "sla_cswin":
        kind, arguments = SimplifiedLinear, LINEAR_CORE
        checked["focusing_factor"] = kwargs.get("focusing_factor")  # ignored there
        data = without_unused_scale(data)
    arguments = translated(kwargs, arguments, checked)
    names = inside("inner", names)
    mixer = OfProjected(Stripes(lambda: kind(**arguments), stripe))

    def joined(t):
        """[3, B, N, C] -> [B, N, 3 C]."""
        return np.concatenate(list(t), -1)

    data = {**data, "x": joined(data["qkv"]), "dx": joined(data["dqkv"])}
    data = with_maps(data, as_grid(side, side))
    run_once(data, meta, tolerance, mixer, names, grid=False)


def without_unused_scale(data):
    """The data without a parameter that was left over from focused attention."""
    for name in [k for k in data if k.startswith("dparam_") and k.endswith("scale")]:
        assert not data[name].any()
    return {k: v for k, v in data.items() if not k.endswith("scale")}


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


@layer_runner("swin_block", "sla_swin_block")
def swin_block(data, meta, tolerance):
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
    own = {**linear("qkv", "qkv"), **linear("proj", "proj")}
    own |= {**DWC, **table(*window)} if linear_type else offsets(window)
    names = {**BLOCK, **inside("mixer", own, "attn.")}
    block = block_of(mixer, int(width * kwargs.get("mlp_ratio", 4.0)))
    data = with_maps(data, as_grid(height, breadth))
    run_once(data, meta, tolerance, block, names, grid=False)


@layer_runner("cswin_block", "sla_cswin_block")
def cswin_block(data, meta, tolerance):
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
    own = {**linear("qkv", "qkv"), **linear("proj", "proj")}
    branches = {"vertical": (side, split), "horizontal": (split, side)}
    branches = {"whole": (side, side)} if one else branches
    for i, (name, stripe) in enumerate(branches.items()):
        parameters = {**LEPE, **DWC, **table(*stripe)} if linear_type else LEPE
        own |= inside(name, parameters, f"attns.{i}.")
    names = {**BLOCK, **inside("mixer", own)}
    block = block_of(mixer, int(width * kwargs.get("mlp_ratio", 4.0)))
    data = with_maps(without_unused_scale(data), as_grid(side, side))
    run_once(data, meta, tolerance, block, names, grid=False)


@layer_runner("pvtv2_mlp_dwconv")
def depthwise_mlp(data, meta, tolerance):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    arguments = translated(
        kwargs,
        {"hidden_features": "hidden", "linear": "rectify"},
        {"in_features": width, "out_features": width},
    )
    mlp = DepthwiseMLP(
        **{"hidden": width, **arguments}, activation=ACTIVATIONS.factory("gelu")
    )
    names = {
        **linear("fc1", "fc1"),
        **linear("fc2", "fc2"),
        **{f"dwconv.dwconv.{k.split('.')[1]}": v for k, v in DWC.items()},
    }
    data = with_maps(data, as_grid(*grid_of(data, meta)))
    run_once(data, meta, tolerance, Unconditional(mlp), names, grid=False)


@layer_runner("poolformer_pool")
def pooling(data, meta, tolerance):
    arguments = translated(meta["kwargs"], {"pool_size": "pool_size"}, {})
    mixer = mixers.build("pooling", **arguments)()
    data = with_maps(data, lambda t: np.moveaxis(t, 1, -1))
    run_once(data, meta, tolerance, mixer, {}, grid=False)
