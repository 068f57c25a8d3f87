"""Adapters of published networks of grouped, guided and scanned mixers."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax import convert, models
from normjax.families import PRESETS
from tests.golden_adapters import model_runner
from tests.golden_adapters.run import cast
from tests.golden_adapters.whole_models import conforms, largest_error, state_of


def stages(kwargs, **names):
    """Arguments of ours: those of theirs that the file gives, lists as tuples."""
    found = {ours: kwargs[name] for ours, name in names.items() if name in kwargs}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def with_arguments(spec, **arguments):
    """A component with further arguments."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    return {**spec, **arguments}


def check(preset, data, meta, tolerance, **arguments):
    """A file of images conforms to the preset with these arguments."""
    state = state_of(meta, data, {})
    settled = convert.arguments_of(state, {"name": "layer_norm"})
    arguments = {"num_classes": settled["num_classes"], **arguments}
    model = models.build(preset, **arguments)
    return conforms(model, state, data, meta, tolerance)


SIZES = {"dims": "embed_dims", "depths": "depths", "num_heads": "num_heads"}


@model_runner("favit")
def favit(data, meta, tolerance):
    kwargs = meta["kwargs"]
    ratios, window = kwargs.get("sr_ratios", (8, 4, 2, 1)), kwargs.get("windowsize", 7)
    more = {"window_size": window, "qkv_bias": kwargs.get("qkv_bias", True)}
    mixers = ({"name": "factorization", "sr_ratio": r, **more} for r in ratios)
    sizes = stages(kwargs, **SIZES, mlp_ratio="mlp_ratios")
    check("favit_b0", data, meta, tolerance, mixer=tuple(mixers), **sizes)


@model_runner("sgformer")
def sg_former(data, meta, tolerance):
    kwargs = meta["kwargs"]
    sizes = stages(kwargs, **SIZES, mlp_ratio="mlp_ratios")
    assert kwargs.get("sr_ratios", [8, 4, 2, 1]) == [8, 4, 2, 1]
    preset, bias = PRESETS["sgformer_s"], kwargs.get("qkv_bias", True)
    stem = preset["stem"]
    if "dims" in sizes:
        stem = {**stem, "hidden": (sizes["dims"][0],) * 2}
    mixer = tuple(
        tuple(with_arguments(one, qkv_bias=bias) for one in stage)
        if isinstance(stage, tuple)
        else with_arguments(stage, qkv_bias=bias)
        for stage in preset["mixer"]
    )
    check("sgformer_s", data, meta, tolerance, mixer=mixer, stem=stem, **sizes)


@model_runner("ms_mlp")
def ms_mlp(data, meta, tolerance):
    kwargs = meta["kwargs"]
    sizes = stages(kwargs, depths="depths")
    if "embed_dim" in kwargs:
        sizes["dims"] = tuple(kwargs["embed_dim"] << i for i in range(4))
    preset, more = PRESETS["ms_mlp_t"], {}
    if "shift_dist" in kwargs:
        more["shifts"] = tuple(kwargs["shift_dist"])
    if "mlp_ratio" in kwargs:
        more["mlp_ratio"] = float(kwargs["mlp_ratio"])
    assert kwargs.get("patch_norm", True)
    kernels = kwargs.get("mix_size") or [m["kernel_sizes"] for m in preset["mixer"]]
    mixer = tuple(
        {"name": "mix_shift", "kernel_sizes": tuple(k), **more} for k in kernels
    )
    check("ms_mlp_t", data, meta, tolerance, mixer=mixer, **sizes)


@model_runner("fcaformer")
def fcaformer(data, meta, tolerance):
    kwargs = meta["kwargs"]
    sizes = stages(kwargs, **SIZES, mlp_ratio="mlp_ratio")
    if "num_heads" in sizes:  # 0 where nothing attends
        sizes["num_heads"] = tuple(max(1, n) for n in sizes["num_heads"])
    more = stages(kwargs, max_blocks="cab_max_d", qkv_bias="qkv_bias")
    cross = {"name": "forward_cross", **more}
    mixer = ("identity", "identity", cross, cross)
    stem = PRESETS["fcaformer_l1"]["stem"]
    if "dims" in sizes:
        stem = {**stem, "hidden": (sizes["dims"][0] // 2,)}
    check("fcaformer_l1", data, meta, tolerance, mixer=mixer, stem=stem, **sizes)


@model_runner("group_mamba")
def group_mamba(data, meta, tolerance):
    kwargs, preset = meta["kwargs"], PRESETS["groupmamba_tiny"]
    sizes = stages(kwargs, dims="embed_dims", depths="depths", mlp_ratio="mlp_ratios")
    sizes |= stages(kwargs, distilled="distillation")
    stem = preset["stem"]
    if "stem_hidden_dim" in kwargs:
        stem = {**stem, "hidden": (kwargs["stem_hidden_dim"],) * 3}
    mixer = {**preset["mixer"], **stages(kwargs, state_size="d_state")}
    check("groupmamba_tiny", data, meta, tolerance, stem=stem, mixer=mixer, **sizes)


@model_runner("raft_mlp")
def raft_mlp(data, meta, tolerance):
    kwargs, preset = meta["kwargs"], PRESETS["raft_mlp_s"]
    fixed = {"embedding_type": "emb_cross_mlp", "token_mixing_type": "ser_pm"}
    fixed |= {"shortcut": False}
    assert all(kwargs.get(k, v) == v for k, v in fixed.items())
    sizes = stages(kwargs, depths="depths", dims="dims")
    if "channel_expansion_factor" in kwargs:
        sizes["mlp_ratio"] = float(kwargs["channel_expansion_factor"])
    strides = kwargs.get("patch_sizes", (4, 2, 2, 2))
    kernels = kwargs.get("embedding_kernels", ((4, 8), (2, 4), (2, 4), (2,)))
    patches = [
        {"name": "multi_scale_patches", "stride": stride, "kernel_sizes": tuple(sizes)}
        for stride, sizes in zip(strides, kernels, strict=True)
    ]
    side, blocks = kwargs.get("pretrained_image_size", 224), []
    for stride in strides:
        side = -(-side // stride)
        blocks.append({"name": "raft", "grid": (side, side)})
    mixer = {**preset["mixer"], **stages(kwargs, raft_size="raft_size")}
    if "token_expansion_factor" in kwargs:
        mixer["expansion"] = float(kwargs["token_expansion_factor"])
    parts = {"stem": patches[0], "merge": tuple(patches[1:]), "mixer": mixer}
    check("raft_mlp_s", data, meta, tolerance, branches=tuple(blocks), **parts, **sizes)


@model_runner("sviptr")
def sviptr(data, meta, tolerance):
    """A stage of each letter: stripes, halves near and far, attention."""
    kwargs, stage_mixers = meta["kwargs"], []
    assert kwargs.get("transformation") is None
    reductions = kwargs.get("sr_ratios", [2] * 4)
    parts = zip(kwargs["mixers"], kwargs["split_sizes"], reductions, strict=False)
    for kind, split, ratio in parts:
        near = {"name": "cross_shaped_window", "split_size": split}
        far = {"name": "overlapping_spatial_reduction", "sr_ratio": ratio}
        stage_mixers.append({"L": near, "LG": (near, far), "G": "softmax"}[kind])
    sizes = stages(kwargs, **SIZES, mlp_ratio="mlp_ratios", hidden="out_dim")
    merges = tuple(stage + 1 for stage in kwargs["downsample_after"])
    sizes |= {"mixer": tuple(stage_mixers), "merges": merges}
    stem = PRESETS["sviptr_v2_t"]["stem"]
    if "dims" in sizes:
        sizes["stem"] = {**stem, "hidden": (sizes["dims"][0] // 2,)}
    check("sviptr_v2_t", data, meta, tolerance, **sizes)


def whole_state(data, meta):
    """The state dict, arrays that are one tensor under several names among them."""
    tied = {key: last for key, *_, kind, _, _, last in meta["keys"] if kind == "tied"}
    rest = [row for row in meta["keys"] if row[0] not in tied]
    state = state_of({**meta, "keys": rest}, data, {})
    return state | {key: state[other] for key, other in tied.items()}


def returns(model, converted, state, meta):
    """Assert that every array goes back as it came."""
    back = convert.to_torch(model, converted.variables, (), converted.layout)
    assert back.keys() == {key for key, *_ in meta["keys"]}
    for key in state.keys() - converted.dropped.keys():
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)


def tables_of(state, depth):
    """Times and rates of the long convolutions, which the file rounds to float32."""
    blocks = {}
    for i in range(depth):
        convolutions = {}
        for ours, theirs in (("conv", "filter_fn"), ("residual_conv", "filter_fn2")):
            start = f"bert.encoder.layer.{i}.attention.{theirs}"
            if f"{start}.pos_emb.t" in state:
                times = state[f"{start}.pos_emb.t"].ravel()
                rates = state[f"{start}.modulation.deltas"].ravel()
                convolutions[ours] = {"times": times, "rates": rates}
        blocks[f"blocks_{i}"] = {"mixer": convolutions}
    return blocks


@model_runner("m2_bert")
def m2_bert(data, meta, tolerance):
    kwargs, state = meta["kwargs"], whole_state(data, meta)
    sizes = stages(
        kwargs,
        dim="hidden_size",
        depth="num_hidden_layers",
        mlp_hidden="intermediate_size",
        vocab_size="vocab_size",
        max_length="max_position_embeddings",
        types="type_vocab_size",
    )
    names = {
        "max_length": "long_conv_l_max",
        "filter_width": "hyena_filter_order",
        "position_features": "hyena_emb_dim",
        "bidirectional": "bidirectional",
        "residual": "residual_long_conv",
    }
    assert kwargs.get("hyena_w_mod", 1) == 1
    preset = "m2_bert_80m" if kwargs["hyena_training_additions"] else "m2_bert_110m"
    mixer = {**PRESETS[preset]["mixer"], **stages(kwargs, **names)}
    mlp = {"name": "monarch_mlp", **stages(kwargs, blocks="monarch_mlp_nblocks")}
    norm = {"name": "layer_norm", **stages(kwargs, epsilon="layer_norm_eps")}
    model = models.build(preset, mixer=mixer, mlp=mlp, norm=norm, **sizes)
    converted = convert.from_torch(model, state, ())
    given = {**converted.variables, "constants": tables_of(state, model.depth)}
    variables = cast(given, tolerance.dtype)
    rng = np.random.default_rng(meta.get("input_seed") or 0)
    tokens = rng.integers(0, sizes["vocab_size"], meta["input_shape"])
    error = largest_error(model, variables, jnp.asarray(tokens), data["logits"])
    assert error <= tolerance.value, f"logits: {error}"
    returns(model, converted, state, meta)


def padded(data):
    """The graphs of a file side by side, and where their nodes are."""
    graphs = data["graph_of_node"]
    counts = np.bincount(graphs)
    place = np.arange(len(graphs)) - (np.cumsum(counts) - counts)[graphs]
    shape, most = (len(counts), counts.max()), counts.max()

    def filled(values, shape):
        array = np.zeros((*shape, *values.shape[1:]), values.dtype)
        array[graphs, place] = values
        return jnp.asarray(array)

    mask = np.zeros(shape, bool)
    mask[graphs, place] = True
    adjacency, edges = np.zeros((*shape, most), bool), np.zeros((*shape, most), int)
    source, target = data["edge_src"], data["edge_dst"]
    where = graphs[target], place[target], place[source]
    adjacency[where], edges[where] = True, data["edge_type"]
    given = {"adjacency": jnp.asarray(adjacency), "mask": jnp.asarray(mask)}
    nodes = filled(data["node_type"], shape)
    return nodes, given, jnp.asarray(edges), filled, (graphs, place)


@model_runner("graph_transformer")
def graph_transformer(data, meta, tolerance):
    kwargs, state = meta["kwargs"], whole_state(data, meta)
    preset = f"graph_transformer_{kwargs['dataset'].lower()}"
    sizes = stages(
        kwargs,
        depth="L",
        num_heads="n_heads",
        dim="hidden_dim",
        edge_types="num_bond_type",
    )
    assert kwargs["out_dim"] == kwargs["hidden_dim"]
    sizes["vocab_size"] = len(state["embedding_h.weight"])
    sizes["num_classes"] = len(state["MLP_layer.FC_layers.2.weight"])
    sizes["positions"] = kwargs["pos_enc_dim"] if kwargs["lap_pos_enc"] else 0
    if "readout" in kwargs:
        assert kwargs["readout"] == "mean"
    assert kwargs["layer_norm"] != kwargs["batch_norm"]
    kind = "layer_norm" if kwargs["layer_norm"] else "batch_norm"
    norm = {"name": kind, "epsilon": 1e-5}
    model = models.build(preset, norm=norm, **sizes)
    converted = convert.from_torch(model, state, ())
    variables = cast(converted.variables, tolerance.dtype)
    nodes, given, edges, filled, places = padded(data)
    if sizes.get("edge_types"):
        given["edges"] = edges
    if sizes["positions"]:
        positions = data["lap_pos_enc"].astype(tolerance.dtype)
        given["positions"] = filled(positions, nodes.shape)
    y = np.asarray(jax.jit(model.apply)(variables, nodes, **given), np.float64)
    y = y[places] if model.readout == "nodes" else y
    error = np.abs(y - data["logits"]).max()
    assert error <= tolerance.value, f"logits: {error}"
    returns(model, converted, state, meta)
