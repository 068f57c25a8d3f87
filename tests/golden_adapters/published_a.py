"""Adapters of published vision networks: convolutions, windows, modulation."""

from normjax import convert, models
from normjax.convert.names import form_of
from normjax.families import FAMILIES
from normjax.families.efficientmod import efficientmod as efficientmod_of
from normjax.families.gcvit import gcvit_mixers
from normjax.families.tiny_vit import tiny_vit_mixers
from normjax.families.transnext import transnext_mixers
from tests.golden_adapters import model_runner
from tests.golden_adapters.run import cast
from tests.golden_adapters.whole_models import (
    conforms,
    image_batch,
    largest_error,
    state_of,
)


def per_stage(values):
    """Lists of the meta as arguments of ours."""
    return tuple(values) if isinstance(values, list) else values


def given(kwargs, **names):
    """Arguments of ours: those of theirs that the file gives."""
    return {
        ours: per_stage(kwargs[theirs])
        for ours, theirs in names.items()
        if theirs in kwargs
    }


def built(preset, state, **arguments):
    """The preset with these arguments and as many classes as the file has."""
    settled = convert.arguments_of(state, {"name": "layer_norm"})
    return models.build(preset, num_classes=settled["num_classes"], **arguments)


@model_runner("poolformer")
def poolformer(data, meta, tolerance):
    """The layout says where the mean of the head stands; a file may have both."""
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    sizes = given(kwargs, depths="depths", dims="dims", mlp_ratio="mlp_ratio")
    mixer = {"name": "pooling", "pool_size": kwargs.get("pool_size", 3)}
    family = FAMILIES["poolformer"]
    form = form_of(family, state)
    model = built("poolformer_s12", state, mixer=mixer, **sizes, **form)
    _, variables = conforms(model, state, data, meta, tolerance)
    if "logits_sail_head" in data:
        model = built("poolformer_s12", state, mixer=mixer, **sizes)
        images = image_batch(meta, tolerance.dtype)
        variables = cast(variables, tolerance.dtype)
        error = largest_error(model, variables, images, data["logits_sail_head"])
        assert error <= tolerance.value, f"logits_sail_head: {error}"


@model_runner("davit")
def davit(data, meta, tolerance):
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    sizes = given(kwargs, embed_dims="dims", num_heads="num_heads")
    sizes |= given(kwargs, mlp_ratio="mlp_ratio")
    if "depths" in kwargs:
        sizes["depths"] = tuple(2 * pairs for pairs in kwargs["depths"])
    qkv = given(kwargs, qkv_bias="qkv_bias")
    window = {"name": "window", "core": "softmax", "shift": 0, **qkv}
    window |= {"window_size": kwargs.get("window_size", 7)}
    sizes["mixer"] = ((window, {"name": "channel", **qkv}),) * 4
    conforms(built("davit_tiny", state, **sizes), state, data, meta, tolerance)


@model_runner("efficientmod")
def efficientmod(data, meta, tolerance):
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    arguments = efficientmod_of(
        tuple(kwargs["depths"]),
        tuple(kwargs["attention_depth"]),
        tuple(kwargs["embed_dim"]),
        tuple(kwargs["mlp_ratio"]),
        tuple(ratio or 4 for ratio in kwargs["att_ratio"]),
        num_heads=kwargs.get("num_heads", 8),
        narrowest_head=kwargs.get("min_head_dim", 32),
        kernel_size=kwargs.get("context_size", 7),
    )
    model = built(arguments.pop("name"), state, **arguments)
    conforms(model, state, data, meta, tolerance)


@model_runner("gcvit")
def gcvit(data, meta, tolerance):
    """Windows follow the size of the images where the file does not say them."""
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    sizes = given(kwargs, depths="depths", num_heads="num_heads", mlp_ratio="mlp_ratio")
    if "embed_dim" in kwargs:
        sizes["dims"] = tuple(kwargs["embed_dim"] << stage for stage in range(4))
    # Of layer scales only that there are some matters here.
    sizes["layer_scale"] = 1.0 if any("gamma" in key for key in state) else None
    sides = meta["input_shape"][2:]
    fitting = [[side // part for side in sides] for part in (32, 32, 16, 32)]
    windows = kwargs.get("window_size") or fitting
    sizes["mixer"] = gcvit_mixers(tuple(map(per_stage, windows)))
    conforms(built("gcvit_xxtiny", state, **sizes), state, data, meta, tolerance)


@model_runner("tiny_vit")
def tiny_vit(data, meta, tolerance):
    """All heads of the published sizes are equally wide."""
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    sizes = given(kwargs, embed_dims="dims", depths="depths", num_heads="num_heads")
    sizes |= given(kwargs, mlp_ratio="mlp_ratio", mbconv_expand_ratio="expansion")
    windows = kwargs.get("window_sizes")
    if windows:
        sizes["mixer"] = tiny_vit_mixers(tuple(windows))
    conforms(built("tiny_vit_5m_224", state, **sizes), state, data, meta, tolerance)


@model_runner("nfnet")
def nfnet(data, meta, tolerance):
    """F0 to F6 and the light ones differ in arguments, all of which the file has."""
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    names = {"depths": "depths", "widths": "channels", "stem_width": "stem_chs"}
    names |= {"group_width": "group_size", "bottleneck_ratio": "bottle_ratio"}
    names |= {"same_padding": "same_padding", "skip_init": "skipinit"}
    names |= {"last_width": "num_features", "alpha": "alpha"}
    arguments = given(kwargs, **names)
    attentions = {"se": "squeeze_excitation", "eca": "efficient_channel"}
    arguments["attention"] = attentions[kwargs.get("attn", "se")]
    if kwargs.get("attn_ratio"):
        arguments["attention_ratio"] = kwargs["attn_ratio"]
    act = kwargs.get("act", "gelu")
    gains = {"gelu": 1.7015043497085571, "silu": 1.7881293296813965}
    behind = kwargs.get("gamma_in_act", True)
    arguments["activation"] = f"scaled_{act}" if behind else act
    arguments["weight_gain"] = 1.0 if behind else gains[act]
    conforms(built("dm_nfnet_f0", state, **arguments), state, data, meta, tolerance)


@model_runner("transnext")
def transnext(data, meta, tolerance):
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    sizes = given(kwargs, depths="depths", embed_dims="dims", num_heads="num_heads")
    sizes |= given(kwargs, mlp_ratios="mlp_ratio")
    trained = kwargs.get("pretrain_size") or kwargs.get("img_size", 224)
    mixer = transnext_mixers(
        kwargs.get("sr_ratios", (8, 4, 2, 1)),
        tuple(trained // (4 << stage) for stage in range(4)),
        kwargs.get("fixed_pool_size"),
        kwargs.get("window_size", (3, 3, 3, None)),
    )
    model = built("transnext_micro", state, mixer=mixer, **sizes)
    conforms(model, state, data, meta, tolerance)


@model_runner("mobilenet_v2")
def mobilenet_v2(data, meta, tolerance):
    state = state_of(meta, data, {})
    width = {"width_multiplier": meta["kwargs"].get("width_mult", 1.0)}
    model = built("mobilenet_v2", state, **width)
    conforms(model, state, data, meta, tolerance)


@model_runner("resnet")
def resnet(data, meta, tolerance):
    state, kwargs = state_of(meta, data, {}), meta["kwargs"]
    sizes = given(kwargs, layers="depths", block="block")
    conforms(built("resnet18", state, **sizes), state, data, meta, tolerance)
