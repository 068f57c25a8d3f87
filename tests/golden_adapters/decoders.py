"""Adapters of decoders of other shapes: layers that differ, streams."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from normjax import activations, convert, mixers, models
from normjax.families import openelm, parscale
from normjax.models.experts import Experts, dispatched
from normjax.models.parallel_decoder import StreamAggregation
from tests.golden_adapters import layer_case, registered
from tests.golden_adapters.compare import MODELS
from tests.golden_adapters.language_models import left_padding
from tests.golden_adapters.run import Case, applied, cast, pure
from tests.golden_adapters.translate import (
    flat,
    inside,
    linear,
    of,
    translated,
    transposed,
)
from tests.golden_adapters.whole_models import conforms as images_conform
from tests.golden_adapters.whole_models import image_batch, state_of


def whole(*variants):
    """Decorator of the runner of whole models."""
    return registered(*variants, by="variant", tolerances=MODELS)


def tokens_of(meta):
    """The input that the meta describes in words."""
    words = r"default_rng\((\d+)\)\.integers\(0, (\d+), size=\((\d+), (\d+)\)\)"
    seed, count, *size = map(int, re.search(words, meta["input"]).groups())
    return np.random.default_rng(seed).integers(0, count, size=size)


def compare(name, actual, expected, tolerance, seen=None):
    """Absolute errors, of the positions that are seen."""
    error = np.abs(np.asarray(actual, np.float64) - expected)
    error = error if seen is None else error[seen]
    assert error.max() <= tolerance.value, f"{name}: {error.max()}"


def conforms(model, state, data, meta, tolerance, unwritten=()):
    """Logits, those behind left padding, and every array back as it came.

    Returns:
      our variables.
    """
    tokens = tokens_of(meta)
    converted = convert.from_torch(model, state)
    variables = cast(converted.variables, tolerance.dtype)
    apply = jax.jit(model.apply)
    compare("logits", apply(variables, tokens), data["logits"], tolerance)
    if "logits_leftpad" in data:
        mask = left_padding(meta, tokens.shape)
        known = {"mask": jnp.asarray(mask)}
        if "position ids still" in meta["numerics"]["leftpad"]:
            known["positions"] = jnp.tile(jnp.arange(tokens.shape[1]), (len(tokens), 1))
        logits = apply(variables, tokens, **known)
        compare("padded", logits, data["logits_leftpad"], tolerance, mask)
    back = convert.to_torch(model, converted.variables, layout=converted.layout)
    assert back.keys() == {key for key, *_ in meta["keys"]} == state.keys()
    for key in state:
        own = slice(None)
        if key.endswith(".act.slopes"):  # of which a layer reads its own
            own = int(key.split(".")[2])
        np.testing.assert_array_equal(back[key][own], state[key][own], err_msg=key)
    return variables


@layer_case("openelm_attention")
def openelm_attention(data, meta):
    kwargs = dict(meta["kwargs"])
    heads = (kwargs.pop(f"num_{kind}_heads") for kind in ("query", "kv"))
    epsilon, head = kwargs.pop("norm_eps", 1e-6), kwargs.pop("head_dim")
    queries, keys = heads
    (spec,) = openelm.mixers([queries], [keys], head, epsilon)
    names = {"rope_base": "rotary_base"}
    given = translated(kwargs, names, {"model_dim": data["x"].shape[-1]})
    own = {"causal": True, "qkv_bias": False, "proj_bias": False}
    mixer = mixers.build({**spec, **own, "rotary_base": 10_000.0, **given})()
    norms = {f"{n}/scale": of(f"{n}.weight") for n in ("q_norm", "k_norm")}
    layout = {**linear("qkv_proj", "qkv"), **linear("out_proj", "proj"), **norms}
    return Case(applied(mixer), layout)


@whole("openelm")
def openelm_model(data, meta, tolerance):
    kwargs = dict(meta["kwargs"])
    dim, depth = kwargs.pop("model_dim"), kwargs.pop("num_transformer_layers")
    head, groups = kwargs.pop("head_dim"), kwargs.pop("num_gqa_groups")
    scales = (kwargs.pop(f"{kind}_multipliers") for kind in ("qkv", "ffn"))
    of_heads, of_mlps = scales
    queries = openelm.query_heads(dim, depth, of_heads, head, groups)
    keys = [q // groups for q in queries]
    assert meta["heads"] == {"query": list(queries), "key_value": keys}
    widths = openelm.mlp_widths(dim, depth, of_mlps, kwargs.pop("ffn_dim_divisor"))
    assert meta["ffn_widths"] == list(widths)
    epsilon = kwargs.pop("norm_eps", 1e-6)
    layers = openelm.mixers(queries, keys, head, epsilon)
    if not kwargs.pop("normalize_qk_projections", True):
        layers = tuple({**layer, "qk_norm": None} for layer in layers)
    names = {"vocab_size": "vocab_size", "rope_base": "rotary_base"}
    names |= {"share_input_output_layers": "tied"}
    given = {"rotary_base": 10_000.0, **translated(kwargs, names)}
    size = {"dim": dim, "depth": depth, "mixer": layers, "mlp_hidden": widths}
    norm = {"name": "rms_norm", "epsilon": epsilon}
    model = models.build("openelm_270m", norm=norm, **size, **given)
    conforms(model, state_of(meta, data, norm), data, meta, tolerance)


@layer_case("illama_attention")
def illama_attention(data, meta):
    names = {"num_heads": "num_heads", "rope_base": "rotary_base"}
    names |= {"soft_mask_rate": "soft_mask"}
    given = translated(meta["kwargs"], names, {"dim": data["x"].shape[-1]})
    mixer = mixers.build("soft_causal", **given)()
    return Case(applied(mixer), {**linear("qkv", "qkv"), **linear("proj", "proj")})


@registered("illama_soft_mask_schedule", by="variant", tolerances=MODELS)
def soft_mask_schedule(data, meta, tolerance):
    for i, call in enumerate(meta["kwargs"]):
        kwargs = {"schedule": "linear", **call}
        per_epoch, count = kwargs["niter_per_ep"], len(data[f"schedule_{i}"])
        assert count == kwargs["epochs"] * per_epoch
        steps = kwargs["cutoff_epoch"] * per_epoch if kwargs["mode"] == "soft" else 0
        kind = kwargs["soft_mask_rate"], steps, kwargs["schedule"]
        rates = [mixers.soft_mask_rate(step, *kind) for step in range(count)]
        error = np.abs(np.asarray(rates, np.float64) - data[f"schedule_{i}"])
        assert error.max() <= tolerance.value


@whole("illama")
def illama_model(data, meta, tolerance):
    kwargs = dict(meta["kwargs"])
    entry = kwargs.pop("entry", "illama_tiny")
    names = {"num_classes": "num_classes", "embed_dim": "dim", "depth": "depth"}
    names |= {"num_heads": "num_heads"}
    shapes = {key: shape for key, shape, *_ in meta["keys"]}
    given = {"num_classes": shapes["head.weight"][0], **translated(kwargs, names)}
    if "dim" in given:
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
        given["mlp_ratio"] = hidden / given["dim"]
    if "input_shape" not in meta:
        sides = re.search(r"standard_normal\(\(([\d, ]+)\)\)", meta["input"])[1]
        meta = {**meta, "input_shape": [int(n) for n in sides.split(",")]}
    norm = {"name": "rms_norm", "epsilon": kwargs.get("norm_eps", 1e-6)}
    model = models.build(entry, norm=norm, **given)
    state = state_of(meta, data, norm)
    _, variables = images_conform(model, state, data, meta, tolerance)
    mixer = {"name": "soft_causal", "soft_mask": meta["soft_mask_rate"]}
    soft = models.build(entry, norm=norm, **given, mixer=mixer)
    images = image_batch(meta, tolerance.dtype)
    logits = jax.jit(soft.apply)(variables, images)
    compare("soft", logits, data["logits_soft"], tolerance)


def norm_free_arguments(kwargs):
    """The size and the activation of GPT-2 without the norms of its blocks."""
    assert kwargs["norm_type"] == "free"
    names = {"n_embd": "dim", "n_layer": "depth", "n_head": "num_heads"}
    names |= {"n_inner": "mlp_hidden", "vocab_size": "vocab_size"}
    act = kwargs.get("act", "gelu")
    slope = kwargs.get("slope", kwargs.get("negative_slope", 0.01))
    known = {"leaky_relu": ("leaky_relu", {"slope": slope})}
    known |= {"learnable_lrelu": ("prelu", {"per_channel": False})}
    name, more = known.get(act, (act, {}))
    given = {ours: kwargs[theirs] for theirs, ours in names.items() if theirs in kwargs}
    return {**given, "activation": {"name": name, **more}}


@layer_case("normfree_block")
def norm_free_block(data, meta):
    layer = meta["kwargs"]["layer_index"]
    given = {"vocab_size": 2, **norm_free_arguments(meta["kwargs"])}
    model = models.build("norm_free_gpt2_relu", **given)
    block, length = model._layer(layer, parent=None), data["x"].shape[1]
    names = {"mixer/qk": "attn.qk_attn", "mixer/v": "attn.v_attn"}
    names |= {"mixer/proj": "attn.c_proj"}
    names |= {"mlp/fc1": "mlp.c_fc", "mlp/fc2": "mlp.c_proj"}
    layout = {f"{k}/kernel": of(f"{v}.weight") for k, v in names.items()}
    layout |= {"mixer/qk/bias": of("attn.qk_attn.bias")}
    layout |= {"slopes": of("mlp.act.slopes")}

    def apply(params, x):
        params = dict(params)
        slopes = params.pop("slopes", None)
        if slopes is not None:
            act = {"slope": slopes[layer]}
            params["mlp"] = {**params["mlp"], "act": act}
        given, asked = {"params": params}, ["details"]
        y, details = block.apply(given, x, False, mutable=asked)
        (entropy,) = details["details"]["mixer"]["attention_entropy"]
        return {"y": y, "entropy": entropy}

    mean = of("aux_entropy", to=lambda e: e.mean((0, 2)))
    assert data["aux_entropy"].shape[2] == length
    return Case(pure(apply), layout, outputs={"y": of("y"), "entropy": mean})


@whole("normfree_gpt2")
def norm_free_model(data, meta, tolerance):
    shapes = {key: shape for key, shape, *_ in meta["keys"]}
    given = norm_free_arguments(meta["kwargs"])
    given["max_length"] = shapes["transformer.wpe.weight"][0]
    model = models.build("norm_free_gpt2_relu", **given)
    state = state_of(meta, data, {"name": "layer_norm"})
    variables = conforms(model, state, data, meta, tolerance)
    apply = jax.jit(lambda v, t: model.apply(v, t, mutable=["details"]))
    _, details = apply(variables, tokens_of(meta))
    for i, expected in enumerate(data["aux_entropy"].mean((1, 3))):
        found = details["details"][f"blocks_{i}"]["mixer"]["attention_entropy"][0]
        compare("entropy", found, expected, tolerance)


def experts_layout(count, prefix=""):
    """The layers of all experts as one array each."""
    layout = {"router/kernel": of(f"{prefix}router.kernel")}
    kinds = {"kernel": "kernel", "expert_bias": "bias"}
    for i, (ours, theirs) in itertools.product((0, 1), kinds.items()):
        names = [f"{prefix}experts.{e}.{i}.{theirs}" for e in range(count)]
        stacked = of(*names, to=lambda *each: np.stack(each))
        layout[f"experts/fc{i + 1}/{ours}"] = stacked
    return layout


def experts_of(kwargs):
    """Arguments of the mixture, as its released code has it."""
    names = ("num_experts", "top_k", "capacity_factor")
    spec = {name: kwargs[name] for name in names}
    return {**spec, "spare": 1, "output_activation": True}


GELU = activations.build("gelu", approximate=True)
TOTAL = {  # gradients are those of the sum of both
    "outputs": {
        "y": of("y"),
        "aux": of("aux_loss", to=np.squeeze),
        "total": of(
            *("y", "dy", "aux_loss"), to=lambda y, dy, aux: np.sum(y * dy) + aux[0]
        ),
    },
    "gradients": {"total": ("d{}", "dparam_{}")},
}


@layer_case("widenet_moe")
def widenet_moe(data, meta):
    kwargs = meta["kwargs"]
    count, alpha = kwargs["num_experts"], kwargs["aux_loss_alpha"]
    spec, hidden = experts_of(kwargs), kwargs["moe_mlp_dim"]
    mlp = models.MixtureOfExperts(hidden=hidden, activation=GELU, **spec)
    size = data["x"].size // data["x"].shape[-1]
    assert mlp.room(size) == kwargs["expert_capacity"] - 1

    def apply(params, x, dy, noise=None):
        tokens = x.reshape(-1, x.shape[-1])
        logits = tokens @ params["router"]["kernel"]
        routing = models.route(logits if noise is None else logits + noise, mlp.top_k)
        experts = Experts(hidden, GELU, True).bind({"params": params["experts"]})
        y = dispatched(tokens, routing, count, mlp.room(size), experts)
        y, aux = y.reshape(x.shape), alpha * routing.balance
        return {"y": y, "aux": aux, "total": jnp.sum(y * dy) + aux}

    fixed = {"dy": of("dy"), "noise": of("noise")}
    return Case(pure(apply), experts_layout(count), fixed=fixed, **TOTAL)


class Stack(models.WideNet):
    """The layers alone."""

    @nn.compact
    def __call__(self, x):
        shared = self._shared()
        for i in range(self.depth):
            x = self._block(i, name=f"blocks_{i}", **shared)(x, True)
        return x


@layer_case("widenet_stack")
def widenet_stack(data, meta):
    kwargs = meta["kwargs"]
    alpha, dim = kwargs["aux_loss_alpha"], kwargs["dim"]
    size = {"dim": dim, "depth": kwargs["num_layers"]}
    size |= {"num_heads": kwargs["num_heads"]}
    experts = {"name": "mixture_of_experts", **experts_of(kwargs)}
    ratio = kwargs["moe_mlp_dim"] / dim
    model = models.build(
        "widenet_base", num_classes=1, mlp_ratio=ratio, mlp=experts, **size
    )
    fields = ("norm", "mixer", "mlp", "activation")
    parts = {name: getattr(model, name) for name in fields}
    stack = Stack(num_classes=1, mlp_ratio=ratio, **size, **parts)

    def apply(params, x, dy):
        y, new = stack.apply({"params": params}, x, mutable=["losses"])
        aux = alpha * sum(jax.tree.leaves(new["losses"]))
        return {"y": y, "aux": aux, "total": jnp.sum(y * dy) + aux}

    layout = inside("mlp", experts_layout(kwargs["num_experts"], "moe."))
    heads = [f"attention.{name}" for name in ("query", "key", "value")]

    def joined(*each):
        return np.concatenate([a.reshape(*a.shape[:-2], -1) for a in each], -1)

    layout |= {
        "mixer/qkv/kernel": of(*(f"{name}.kernel" for name in heads), to=joined),
        "mixer/qkv/bias": of(*(f"{name}.bias" for name in heads), to=joined),
        "mixer/proj/kernel": of(
            "attention.output.kernel", to=lambda a: a.reshape(-1, a.shape[-1])
        ),
        "mixer/proj/bias": of("attention.output.bias"),
    }
    for i, n in itertools.product(range(size["depth"]), (1, 2)):
        for ours, theirs in (("scale", "gamma"), ("bias", "beta")):
            name = f"layers.{i}.norm{n}.{theirs}"
            layout[f"blocks_{i}/norm{n}/{ours}"] = of(name)
    return Case(pure(apply), layout, fixed={"dy": of("dy")}, **TOTAL)


@layer_case("parscale_attention")
def parscale_attention(data, meta):
    kwargs = dict(meta["kwargs"])
    names = {"parscale_n": "streams", "parscale_n_tokens": "prefix_length"}
    names |= {"num_attention_heads": "num_heads", "rope_base": "rotary_base"}
    names |= {"num_key_value_heads": "num_kv_heads"}
    given = translated(kwargs, names, {"hidden_size": data["x"].shape[-1]})
    own = {"causal": True, "proj_bias": False}
    mixer = mixers.build("prefix_attention", **own, **given)()
    layout = {**linear("q_proj", "q"), **linear("o_proj", "proj")}
    layout["kv/kernel"] = transposed("k_proj.weight", "v_proj.weight")
    layout["kv/bias"] = flat("k_proj.bias", "v_proj.bias")
    for ours, theirs in (("prefix_key", "prefix_k"), ("prefix_value", "prefix_v")):
        layout[ours] = of(theirs, to=lambda a: a.transpose(0, 2, 1, 3))
    return Case(applied(mixer), layout)


@layer_case("parscale_aggregate")
def parscale_aggregate(data, meta):
    module = StreamAggregation(meta["kwargs"].get("smoothing", 0.01))
    names = {"fc1": "aggregate_layer.0", "fc2": "aggregate_layer.2"}
    layout = {}
    for ours, theirs in names.items():
        layout |= linear(theirs, ours)
    return Case(applied(module), layout)


@whole("parscale")
def parscale_model(data, meta, tolerance):
    kwargs = dict(meta["kwargs"])
    prefixes, heads = kwargs.pop("parscale_n_tokens", 48), kwargs["num_attention_heads"]
    mixer = parscale.mixer(kwargs.pop("num_key_value_heads", heads), prefixes)
    names = {"hidden_size": "dim", "num_hidden_layers": "depth"}
    names |= {"num_attention_heads": "num_heads", "intermediate_size": "mlp_hidden"}
    names |= {"rope_theta": "rotary_base", "rope_base": "rotary_base"}
    names |= {"parscale_n": "streams", "parscale_attn_smooth": "smoothing"}
    names |= {"vocab_size": "vocab_size", "tie_word_embeddings": "tied"}
    epsilon = kwargs.pop("rms_norm_eps", 1e-6)
    checked = {"max_position_embeddings": kwargs.pop("max_position_embeddings", None)}
    given = translated(kwargs, names, checked)
    norm = {"name": "rms_norm", "epsilon": epsilon}
    model = models.build("parscale_tiny", **given, norm=norm, mixer=mixer)
    state = state_of(meta, data, norm)
    conforms(model, state, data, meta, tolerance)
