"""Adapters of the mixers of maps that attend little or not at all, and of gates."""

import functools

import jax
import numpy as np

from normjax import mixers, norms
from normjax.activations import ACTIVATIONS
from normjax.mixers.ops.selective_scan import associative, chunked, sequential
from normjax.models.block import Block, Branch, feeding, mixing
from normjax.models.local_global import LocalGlobalLayer, Permutation
from normjax.models.mlps import MLP
from normjax.models.placement import BranchPlacement
from normjax.models.tokenizers import ConvTokenizer, SequencePooling
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
    ordered,
    pointwise,
    translated,
)

NORM = {"scale": of("weight"), "bias": of("bias")}
STATISTICS = {"mean": of("running_mean"), "var": of("running_var")}
LAYER_NORM = norms.build("layer_norm", epsilon=1e-5)
PRE = BranchPlacement(pre=True)
CHANNELS_LAST = ordered("B C H W", "B H W C")
GELU = ACTIVATIONS.factory("gelu")


def batch_norm(momentum=0.9):
    """As PyTorch keeps it."""
    return norms.build("batch_norm", momentum=momentum, unbiased_running_var=True)


def statistics(path, name):
    """State of a batch norm at `path`."""
    return inside(f"batch_stats/{path}", STATISTICS, f"{name}.")


def convolution(name, path):
    """A depthwise convolution with bias as `depthwise_layer` has it."""
    return {
        f"{path}_kernel": depthwise(f"{name}.weight"),
        f"{path}_bias": of(f"{name}.bias"),
    }


def training(meta):
    """Fields of a case whose file is of one step, in training or not."""
    return {"train": meta["mode"] == "train", "kept": ("buffer_{}", "buffer_after_{}")}


@layer_case("raft_mlp")
def raft_mlp(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    height, breadth, rafts = kwargs["h"], kwargs["w"], kwargs["raft_size"]
    names = {"raft_size": "raft_size", "token_expansion": "expansion"}
    checked = {"h": height, "w": breadth, "channels": width}
    checked["channel_expansion"] = expansion = kwargs["channel_expansion"]
    given = translated(kwargs, names, checked)

    def along(name, axis):
        mixer = mixers.build("raft", axis=axis, **given)
        takes = (("train", "train"), ("mask", "mask"))
        return Branch(name, f"{name}_norm", LAYER_NORM, mixer, PRE, takes)

    def by_raft(name):
        """(co, raft) -> (raft, co), the order of the channels."""
        return of(name, to=lambda a: a.reshape(-1, rafts).T.reshape(-1))

    layout = {}
    for i, name in ((1, "rows"), (3, "columns")):
        layout[f"{name}_norm/scale"] = by_raft(f"{i}.norm.1.weight")
        layout[f"{name}_norm/bias"] = by_raft(f"{i}.norm.1.bias")
        layout |= linear(f"{i}.fn.0", f"{name}/fc1")
        layout |= linear(f"{i}.fn.3", f"{name}/fc2")
    layout |= inside("norm2", NORM, "5.norm.")
    layout |= linear("5.fn.0", "mlp/fc1")
    layout |= linear("5.fn.3", "mlp/fc2")
    hidden = round(expansion * width)
    mlp = functools.partial(MLP, hidden=hidden, activation=GELU)
    branches = (along("rows", "vertical"), along("columns", "horizontal"))
    block = Block((*branches, feeding(LAYER_NORM, mlp, PRE)))
    return Case(applied(block), layout, **maps(as_grid(height, breadth)))


@layer_case("ms_mlp")
def mix_shift(data, meta):
    kwargs, count = dict(meta["kwargs"]), meta["kwargs"]["shift_size"]
    names = {"shift_dist": "shifts", "mix_size": "kernel_sizes"}
    names["mlp_ratio"] = "mlp_ratio"
    settings = ("input_resolution", "layer_scale_init_value")
    checked = {k: kwargs.get(k) for k in settings}
    checked |= {"dim": data["x"].shape[1], "shift_size": count}
    given = translated(kwargs, names, checked)
    given |= {k: tuple(v) for k, v in given.items() if isinstance(v, list)}
    norm = norms.build("layer_norm", epsilon=1e-6)
    mixer = mixers.build("mix_shift", norm=norm, **given)
    branch = mixing(norm, mixer, BranchPlacement(), layer_scale=1e-6)
    layout = {
        "mixer_layer_scale/scale": of("gamma"),
        **inside("mixer/norm", NORM, "norm."),
        **linear("pwconv1", "mixer/fc1"),
        **linear("pwconv2", "mixer/fc2"),
    }
    for i in range(count):
        layout |= convolution(f"dwconv_lr.{i}", f"mixer/rows_{i}")
        layout |= convolution(f"dwconv_td.{i}", f"mixer/columns_{i}")
    return Case(applied(Block((branch,))), layout, **maps(CHANNELS_LAST))


@layer_case("efficientmod")
def efficient_modulation(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    group, sizes = kwargs["conv_group_dim"], kwargs["context_size"]
    hidden = kwargs.get("hidden_features", width)
    checked = {"in_features": width, "out_features": width, "bias": True}
    checked |= {"hidden_features": hidden, "context_size": sizes}
    given = translated(kwargs, {"conv_group_dim": "expansion"}, checked)
    assert hidden == group * width
    sizes = tuple(sizes) if isinstance(sizes, list) else (sizes,)
    mixer = mixers.build("efficient_modulation", kernel_sizes=sizes, **given)()
    layout = {
        **linear("fc1", "fc1"),
        **linear("context_layer.f", "context_in"),
        **linear("context_layer.g", "context_out"),
        **linear("fc2", "fc2"),
    }
    for i in range(len(sizes)):
        layout |= convolution(f"context_layer.context_list.{i}", f"context_{i}")
    return Case(applied(mixer), layout)


@layer_case("selective_scan")
def scan(data, meta):
    def case(form):
        def apply(params, u, delta, a, b, c, skip=None, bias=None):
            delta = delta if bias is None else delta + bias.reshape(1, 1, -1)
            return form(u, jax.nn.softplus(delta), a, b, c, skip)[0]

        def last(t):
            return np.moveaxis(t, -1, 1)

        inputs = {name: of(name, to=last) for name in ("u", "delta")}
        inputs["A"] = of("A")
        inputs |= {name: of(name, to=last) for name in ("Bm", "Cm")}
        inputs |= {name: of(name) for name in ("D", "delta_bias")}
        return Case(pure(apply), inputs=inputs, outputs={"y": of("y", to=last)})

    forms = (functools.partial(chunked, chunk=4), sequential, associative, chunked)
    return [case(form) for form in forms]


def scans():
    """The four directions of the reference as one."""

    def each(name, to=lambda a: a):
        """One array after the other, along the first axis."""
        names = (f"mamba_g{i}.{name}" for i in range(1, 5))
        return of(*names, to=lambda *arrays: np.concatenate([*map(to, arrays)]))

    def blocks(name):
        return each(name, lambda w: w.reshape(-1, *w.shape[-2:]).swapaxes(1, 2))

    names, joined = each("conv2d.weight")
    layout = {
        "in_proj/kernel": blocks("in_proj.weight"),
        "conv_kernel": of(*names, to=lambda *ws: depthwise("")[1](joined(*ws))),
        "conv_bias": each("conv2d.bias"),
        "x_proj/kernel": blocks("x_proj_weight"),
        "dt_proj/kernel": blocks("dt_projs_weight"),
        "dt_proj/bias": each("dt_projs_bias", lambda b: b[0]),
        "a_log": each("A_logs"),
        "skip": each("Ds"),
        "out_proj/kernel": blocks("out_proj.weight"),
    }
    for i in range(4):
        layout |= inside(f"norm_{i}", NORM, f"mamba_g{i + 1}.out_norm.")
    return inside("scans", layout)


@layer_case("groupmamba_layer")
def group_mamba(data, meta):
    width, grid = data["x"].shape[-1], grid_of(data, meta)
    names = {
        "d_state": "state_size",
        "d_conv": "kernel_size",
        "expand": "expansion",
        "reduction": "reduction",
    }
    checked = {"input_dim": width, "output_dim": width, "H": grid[0], "W": grid[1]}
    given = translated(meta["kwargs"], names, checked)
    mixer = mixers.build("group_mamba", norm=LAYER_NORM, **given)()
    layout = {
        "scale": of("skip_scale"),
        **linear("fc1", "fc1"),
        **linear("fc2", "fc2"),
        **inside("norm", NORM, "norm."),
        **linear("proj", "proj"),
    }
    layout |= scans()
    return Case(applied(mixer), layout, unused=("H", "W"), **maps(as_grid(*grid)))


@layer_case("ulsam")
def ulsam(data, meta):
    kwargs, groups = meta["kwargs"], meta["kwargs"]["num_splits"]
    height, width = data["x"].shape[2:]
    channels = data["x"].shape[1]
    checked = {"nin": channels, "nout": channels, "h": height, "w": width}
    given = translated(kwargs, {"num_splits": "num_groups"}, checked)
    mixer = mixers.build("ulsam", norm=batch_norm(0.1), **given)()

    def of_groups(name):
        return flat(*(f"subspaces.{i}.{name}" for i in range(groups)))

    layout = {
        "scale": of_groups("conv_dws.weight"),
        "shift": of_groups("conv_dws.bias"),
        "map_kernel": of_groups("conv_point.weight"),
        "map_bias": of_groups("conv_point.bias"),
    }
    state = {}
    for ours, theirs in (("norm", "bn_dws"), ("map_norm", "bn_point")):
        layout[f"{ours}/scale"] = of_groups(f"{theirs}.weight")
        layout[f"{ours}/bias"] = of_groups(f"{theirs}.bias")
        for name in ("mean", "var"):
            running = of_groups(f"{theirs}.running_{name}")
            state[f"batch_stats/{ours}/{name}"] = running
    last = maps(CHANNELS_LAST)
    return Case(applied(mixer), layout, state, **last, **training(meta))


def reduced():
    """Parameters and state of the overlapping spatial reduction."""
    layout = {
        "q/kernel": pointwise("q.weight"),
        "q/bias": of("q.bias"),
        "kv/kernel": pointwise("kv.weight"),
        "kv/bias": of("kv.bias"),
        "sr_kernel": depthwise("sr.0.conv.weight"),
        "sr_scale": flat("sr.1.conv.weight"),
        **inside("norm", NORM, "sr.0.bn."),
        **inside("norm_out", NORM, "sr.1.bn."),
        **convolution("local_conv", "local"),
    }
    state = {**inside("norm", STATISTICS, "sr.0.bn.")}
    state |= inside("norm_out", STATISTICS, "sr.1.bn.")
    return layout, state


@layer_case("sviptr_osra")
def overlapping_spatial_reduction(data, meta):
    grid = grid_of(data, meta)
    names = {k: k for k in ("num_heads", "sr_ratio", "qkv_bias")}
    checked = {"dim": data["x"].shape[-1], "H": grid[0], "W": grid[1]}
    given = translated(meta["kwargs"], names, checked)
    key = "overlapping_spatial_reduction"
    mixer = mixers.build(key, reduction_norm=batch_norm(), **given)()
    layout, state = reduced()
    state = inside("batch_stats", state)
    return Case(applied(mixer), layout, state, **maps(as_grid(*grid)), **training(meta))


def mlp_block(mixer, width, kwargs):
    """A pre-norm block of the mixer and an MLP, and the layout of all but the mixer."""
    hidden = int(width * kwargs["mlp_ratio"])
    mlp = functools.partial(MLP, hidden=hidden, activation=GELU)
    branches = (mixing(LAYER_NORM, mixer, PRE), feeding(LAYER_NORM, mlp, PRE))
    layout = {
        **inside("norm1", NORM, "norm1."),
        **inside("norm2", NORM, "norm2."),
        **linear("mlp.net.0", "mlp/fc1"),
        **linear("mlp.net.3", "mlp/fc2"),
    }
    return functools.partial(Block, branches), layout


def stripes(width, grid, kwargs):
    """The local block and its layout."""
    bias, split = kwargs.get("qkv_bias", True), kwargs["split_size"]
    arguments = {"num_heads": kwargs["num_heads"], "split_size": split}
    mixer = mixers.build("cross_shaped_window", qkv_bias=bias, **arguments)
    block, layout = mlp_block(mixer, width, kwargs)
    layout |= inside("mixer", {**linear("qkv", "qkv"), **linear("proj", "proj")})
    if max(grid) <= split:  # one stripe, of all channels
        for name, kind in (("kernel", "weight"), ("bias", "bias")):
            names = [f"attns.{i}.get_v.{kind}" for i in range(2)]

            def joined(*arrays, kind=kind):
                whole = np.concatenate(arrays)
                return depthwise("")[1](whole) if kind == "weight" else whole

            layout[f"mixer/whole/lepe_{name}"] = of(*names, to=joined)
    else:
        for i, name in enumerate(("vertical", "horizontal")):
            layout |= convolution(f"attns.{i}.get_v", f"mixer/{name}/lepe")
    return block, layout


@layer_case("sviptr_stripes")
def sviptr_stripes(data, meta):
    grid, width, kwargs = grid_of(data, meta), data["x"].shape[-1], meta["kwargs"]
    names = dict.fromkeys(("num_heads", "split_size", "mlp_ratio", "qkv_bias"), "")
    translated(kwargs, names, {"dim": width, "H": grid[0], "W": grid[1]})
    block, layout = stripes(width, grid, kwargs)
    return Case(applied(block()), layout, **maps(as_grid(*grid)))


@layer_case("sviptr_lg")
def sviptr_layer(data, meta):
    kwargs, width = meta["kwargs"], data["x"].shape[-1]
    grid, depth, heads = data["x"].shape[1:3], kwargs["depth"], kwargs["num_heads"]
    names = dict.fromkeys(("depth", "num_heads", "mlp_ratio"), "")
    names |= dict.fromkeys(("split_size", "sr_ratio", "qkv_bias"), "")
    checked = {"embed_dim": width, "H": grid[0], "W": grid[1]}
    translated(kwargs, names, checked)
    local_block, near = stripes(width // 2, grid, kwargs)
    mixer = mixers.build(
        "overlapping_spatial_reduction",
        num_heads=heads // 2,
        sr_ratio=kwargs["sr_ratio"],
        reduction_norm=batch_norm(),
    )
    global_block, far = mlp_block(mixer, width // 2, kwargs)
    params, state = reduced()
    far |= inside("mixer", params, "token_mixer.")
    layout, running = {}, {}
    for i in range(depth):
        layout |= inside(f"local_{i}", near, f"local_unit.{i}.")
        layout |= inside(f"global_{i}", far, f"global_unit.{i}.")
        name = f"global_unit.{i}.token_mixer."
        running |= inside(f"batch_stats/global_{i}/mixer", state, name)
    own = {
        **convolution("proj.0", "conv"),
        "fc1/kernel": pointwise("proj.3.weight"),
        "fc1/bias": of("proj.3.bias"),
        "fc2/kernel": pointwise("proj.6.weight"),
        "fc2/bias": of("proj.6.bias"),
    }
    for i, at in enumerate((2, 5, 7)):
        own |= inside(f"norm_{i}", NORM, f"proj.{at}.")
        running |= statistics(f"permutation/norm_{i}", f"proj.{at}")
    layout |= inside("permutation", own)
    permutation = functools.partial(Permutation, batch_norm(), GELU)
    module = LocalGlobalLayer(local_block, global_block, depth, permutation)
    return Case(applied(module), layout, running, **training(meta))


@layer_case("cct_tokenizer")
def conv_tokenizer(data, meta):
    kwargs = meta["kwargs"]
    names = {
        "kernel_size": "kernel_size",
        "stride": "stride",
        "padding": "padding",
        "n_conv_layers": "layers",
        "n_output_channels": "dim",
        "in_planes": "hidden",
        "conv_bias": "use_bias",
    }
    checked = {"activation": "ReLU", "n_input_channels": data["x"].shape[1]}
    checked |= {"pooling_kernel_size": 3, "pooling_stride": 2, "pooling_padding": 1}
    checked |= {"max_pool": True}
    stem = ConvTokenizer(
        norm=None, activation=None, **translated(kwargs, names, checked)
    )
    layout = {}
    for i in range(kwargs.get("n_conv_layers", 1)):
        layout[f"conv_{i}/kernel"] = conv(f"conv_layers.{i}.0.weight")
        layout[f"conv_{i}/bias"] = of(f"conv_layers.{i}.0.bias")

    def apply(variables, x, train):
        y = stem.apply(variables, x, train=train)
        return y.reshape(y.shape[0], -1, y.shape[-1]), {}

    return Case(apply, layout, inputs={"x": of("x", to=CHANNELS_LAST)})


@layer_case("seq_pool")
def sequence_pooling(data, meta):
    mask = {"mask": of("mask", to=lambda a: a.astype(bool))}
    layout = linear("attention_pool", "scores")
    return Case(applied(SequencePooling()), layout, fixed=mask)


@layer_case("t2t_soft_split")
def soft_split(data, meta):
    given = {**meta, **meta.get("kwargs", {})}
    sizes = (given[k] for k in ("kernel", "stride", "padding"))
    sizes = tuple(n if isinstance(n, int) else n[0] for n in sizes)

    def apply(params, x):
        y = mixers.unfolded(x, *sizes)
        return y.reshape(y.shape[0], -1, y.shape[-1])

    return Case(pure(apply), inputs={"x": of("x", to=CHANNELS_LAST)})
