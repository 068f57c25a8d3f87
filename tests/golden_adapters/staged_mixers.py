"""Adapters of the mixers of FaViT, SG-Former, FcaFormer and TransNeXt."""

import functools

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from normjax import mixers, norms
from normjax.activations import ACTIVATIONS
from normjax.models.block import Block, feeding, mixing
from normjax.models.forward_cross import NormedMLP, crossing
from normjax.models.placement import BranchPlacement
from tests.golden_adapters import layer_case
from tests.golden_adapters.run import Case, applied, pure
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
)
from tests.golden_adapters.vision_mixers import NORM, has_bias
from tests.golden_adapters.visual_mixers import QKV


@layer_case("favit_fasa")
def factorization(data, meta):
    """As the code averages."""
    kwargs, bias = meta["kwargs"], has_bias(data, meta["kwargs"], "q")
    names = {"num_heads": "num_heads", "sr_ratio": "sr_ratio"}
    names["windowsize"] = "window_size"
    checked = {"dim": data["x"].shape[-1], "qkv_bias": bias}
    arguments = translated(kwargs, names, checked)
    mixer = mixers.build("factorization", qkv_bias=bias, **arguments)()
    layout = {
        **linear("q", "q"),
        "sr/kernel": conv("sr.weight"),
        "sr/bias": of("sr.bias"),
        **inside("norm", NORM, "norm."),
        **linear("kv_g", "kv"),
        **local("local_conv_g", "whole_value"),
        **local("kv_l.depth_conv", "local"),
        "local_point/kernel": pointwise("kv_l.point_conv.weight"),
        "local_point/bias": of("kv_l.point_conv.bias"),
        **linear("proj", "proj"),
    }
    for i in (0, 1):
        layout |= {
            **linear(f"fcs.{i}", f"windows_{i}_mean"),
            **linear(f"single_heads.{i}", f"windows_{i}_kv"),
            **local(f"local_convs.{i}", f"windows_{i}_value"),
        }
    return Case(applied(mixer), layout, unused=("H", "W"), **of_rows(data, meta))


def local(theirs, ours):
    """A depthwise convolution."""
    return {
        f"{ours}_kernel": depthwise(f"{theirs}.weight"),
        f"{ours}_bias": of(f"{theirs}.bias"),
    }


def of_rows(data, meta):
    return maps(as_grid(*grid_of(data, meta)))


def self_guided_of(data, meta, key, **more):
    kwargs = meta["kwargs"]
    bias = any(k.startswith("param_q") and k.endswith(".bias") for k in data)
    checked = {k: kwargs.get(k) for k in ("mask", "sr_ratio")}
    checked |= {"dim": data["x"].shape[-1], "qkv_bias": bias, "linear": False}
    arguments = translated(kwargs, {"num_heads": "num_heads"}, checked)
    return mixers.build(key, qkv_bias=bias, **arguments, **more)()


GUIDED = {
    **linear("lepe_linear", "lepe_in"),
    **local("lepe_conv", "lepe"),
    **linear("kv1", "kv1"),
    **linear("kv2", "kv2"),
    **linear("proj", "proj"),
}


@layer_case("sgformer_hybrid")
def hybrid(data, meta):
    ratio, grid = meta["kwargs"]["sr_ratio"], grid_of(data, meta)
    mixer = self_guided_of(data, meta, "self_guided_hybrid", sr_ratio=ratio)
    layout = {
        **GUIDED,
        **linear("q1", "q1"),
        **linear("q2", "q2"),
        "sr/kernel": conv("sr.weight"),
        "sr/bias": of("sr.bias"),
        **inside("norm", NORM, "norm."),
    }

    def apply(params, x):
        y, carry = mixer.apply({"params": params}, x, carry={})
        rows, columns = carry["significance"]
        outputs = {"aux_mask1": rows, "aux_mask2": columns.swapaxes(1, 2)}
        return {"y": y, **{k: t.reshape(len(t), -1) for k, t in outputs.items()}}

    layouts = of_rows(data, meta)
    masks = {k: of(k) for k in ("aux_mask1", "aux_mask2")}
    layouts["outputs"] = {**layouts["outputs"], **masks}
    assert grid[0] * grid[1] == data["x"].shape[1]
    return Case(pure(apply), layout, unused=("H", "W"), **layouts)


@layer_case("sgformer_guided")
def guided(data, meta):
    grid, ratio = grid_of(data, meta), meta["kwargs"]["sr_ratio"]
    sizes = {8: (196, 56, 28), 4: (49, 14, 7), 2: (2, 1)}[ratio]
    mixer = self_guided_of(data, meta, "self_guided", group_sizes=sizes)
    layout = {**GUIDED, **linear("q", "q")}
    for i in range(len(sizes)):
        layout |= linear(f"f{i + 1}", f"group_{i + 1}")

    def apply(params, x, rows, columns):
        carry = {"significance": (rows, columns)}
        return mixer.apply({"params": params}, x, carry=carry)[0]

    def turned(m):
        return m.reshape(-1, *grid[::-1]).swapaxes(1, 2)

    return Case(
        pure(apply),
        layout,
        fixed={
            "rows": of("mask1", to=lambda m: m.reshape(-1, *grid)),
            "columns": of("mask2", to=turned),
        },
        unused=("H", "W"),
        **of_rows(data, meta),
    )


@layer_case("fcaformer_block")
def forward_cross(data, meta):
    """The tokens for the next blocks stand behind those of the map there."""
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    grid, bias = tuple(kwargs["input_resolution"]), has_bias(data, kwargs)
    up = kwargs["s_up"]
    checked = {k: kwargs.get(k) for k in ("inner_depth", "mlp_ratio", "s_up")}
    checked |= {"dim": width, "qkv_bias": bias, "input_resolution": list(grid)}
    checked["layer_scale_init_value"] = kwargs.get("layer_scale_init_value")
    names = {"num_heads": "num_heads", "cab_max_d": "max_blocks"}
    mixer = mixers.build(
        "forward_cross", qkv_bias=bias, **translated(kwargs, names, checked)
    )
    norm, pre = norms.build("layer_norm", epsilon=1e-5), BranchPlacement(pre=True)
    mlp = functools.partial(
        NormedMLP,
        norm=norm,
        hidden=int(width * kwargs.get("mlp_ratio", 4.0)),
        activation=ACTIVATIONS.factory("gelu"),
    )
    block = Block(
        (
            mixing(norm, mixer, pre, layer_scale=1e-6),
            crossing(norms.build("batch_norm", epsilon=1e-5), makes_tokens=up),
            feeding(norm, mlp, pre, layer_scale=1e-6, takes=(("train", "train"),)),
        )
    )
    layout = {
        "mixer_layer_scale/scale": of("gamma_1"),
        "mlp_layer_scale/scale": of("gamma_2"),
        **inside("norm1", NORM, "norm1."),
        **inside("norm2", NORM, "norm2."),
        **inside("mlp/norm", NORM, "mlp.norm."),
        **linear("mlp.fc1", "mlp/mlp/fc1"),
        **linear("mlp.fc2", "mlp/mlp/fc2"),
        **inside("mixer", QKV),
        "mixer/cross_bias": of("s_token_bias", to=lambda b: b[0, :, 0].T),
        "mixer/cross_scale": of("s_scale_factors", to=lambda s: s[0]),
        **inside("mixer/cross_norm", NORM, "s_norm."),
        "mixer/offset_bias": of(
            "attention_biases", to=lambda b: b.T.reshape(*grid, -1)
        ),
        "cross/tokens/kernel": depthwise("dw_conv.weight"),
        "cross/local/conv/kernel": depthwise("local_conv.c.weight"),
        **inside("cross/local/norm", NORM, "local_conv.bn."),
    }
    state = {
        "cross/local/norm/mean": data["buffer_local_conv.bn.running_mean"],
        "cross/local/norm/var": data["buffer_local_conv.bn.running_var"],
    }
    places, ours = grid[0] * grid[1], as_grid(*grid)

    def apply(variables, x, s=None, *, train):
        carry = {} if s is None else {"cross_tokens": (s,)}
        y, carry = block.apply(variables, x, train, carry=carry)
        made = [t.reshape(len(t), -1, width) for t in (y, *carry["cross_tokens"][-1:])]
        return jnp.concatenate(made if up else made[:1], 1), {}

    inputs = {"x": of("x", to=ours), "s": of("s")}
    assert data["x"].shape[1] == places
    start = {"batch_stats": unflatten_dict(state, sep="/")}
    return Case(apply, layout, inputs=inputs, start=start)


COSINE = {
    "temperature": flat("temperature"),
    "query_embedding": of("query_embedding", to=lambda e: e[:, 0]),
    **linear("cpb_fc1", "position_fc1"),
    **linear("cpb_fc2", "position_fc2"),
}
TABLES = ("H", "W", "relative_pos_index", "relative_coords_table")
"""Arrays that are ours to make."""


def of_transnext(data, meta, names):
    """The arguments of the mixer."""
    kwargs, grid = meta["kwargs"], grid_of(data, meta)
    bias = has_bias(data, kwargs, "qkv" if "param_qkv.weight" in data else "q")
    checked = {"dim": data["x"].shape[-1], "qkv_bias": bias}
    checked |= {"input_resolution": list(grid), "is_extrapolation": False}
    trained = kwargs.get("pretrain_size")
    checked["pretrain_size"] = trained
    arguments = translated(kwargs, names, checked)
    trained = (trained, trained) if isinstance(trained, int) else trained
    arguments["trained_grid"] = None if trained is None else tuple(trained)
    return {**arguments, "qkv_bias": bias}


@layer_case("transnext_global")
def global_cosine(data, meta):
    arguments = of_transnext(data, meta, {"num_heads": "num_heads"})
    mixer = mixers.build("global_cosine", **arguments)()
    grid = maps(as_grid(*grid_of(data, meta)))
    return Case(applied(mixer), {**QKV, **COSINE}, unused=TABLES, **grid)


@layer_case("transnext_agg", "moh_transnext")
def aggregated(data, meta):
    names = {
        "num_heads": "num_heads",
        "window_size": "window_size",
        "sr_ratio": "sr_ratio",
        "fixed_pool_size": "pool_size",
    }
    layout = {
        **COSINE,
        **linear("q", "q"),
        **linear("kv", "kv"),
        **linear("proj", "proj"),
        "sr/kernel": pointwise("sr.weight"),
        "sr/bias": of("sr.bias"),
        **inside("norm", NORM, "norm."),
        "local_bias": of("relative_pos_bias_local"),
        "learnable_tokens": of("learnable_tokens"),
        "learnable_bias": of("learnable_bias", to=lambda b: b[:, 0]),
    }
    key = "aggregated"
    if meta["variant"] == "moh_transnext":
        key = "aggregated_mixture_of_head"
        names |= {"shared_head": "shared_heads", "routed_head": "active_heads"}
        layout |= {
            **linear("wg", "routed_gate"),
            **linear("wg_0", "balance"),
            **linear("wg_1", "shared_gate"),
        }
    mixer = mixers.build(key, **of_transnext(data, meta, names))()
    grid = maps(as_grid(*grid_of(data, meta)))
    return Case(applied(mixer), layout, unused=TABLES, **grid)
