"""Adapters of published networks: models built of the arguments in their files."""

import numpy as np

from normjax import models
from tests.golden_adapters import model_runner
from tests.golden_adapters.whole_models import conforms, image_batch, state_of


def given(kwargs, names):
    """Arguments of ours by theirs, of those that a file has; lists as tuples."""
    found = {ours: kwargs[k] for k, ours in names.items() if kwargs.get(k) is not None}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def built(preset, data, meta, tolerance, **arguments):
    """Run a file with a preset of these arguments."""
    state = state_of(meta, data, {})
    model = models.build(preset, **arguments)
    return conforms(model, state, data, meta, tolerance)


TOKENIZER = {
    "kernel_size": "kernel_size",
    "stride": "stride",
    "padding": "padding",
    "n_conv_layers": "layers",
}
TRANSFORMER = {
    "num_layers": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "embedding_dim": "dim",
    "num_classes": "num_classes",
}


@model_runner("cct")
def cct(data, meta, tolerance):
    kwargs = meta["kwargs"]
    positions = {"learnable": "learned", "sine": "sine"}
    built(
        "cct_7_3x1_32",
        data,
        meta,
        tolerance,
        **given(kwargs, TRANSFORMER),
        stem={"name": "conv_tokenizer", **given(kwargs, TOKENIZER)},
        positions=positions[kwargs["positional_embedding"]],
    )


@model_runner("t2t_vit")
def t2t_vit(data, meta, tolerance):
    kwargs = meta["kwargs"]
    names = {**TRANSFORMER, "embed_dim": "dim", "depth": "depth"}
    mixer = given(kwargs, {"qkv_bias": "qkv_bias", "qk_scale": "scale"})
    stem = given(kwargs, {"tokens_type": "layer", "token_dim": "token_dim"})
    built(
        "t2t_vit_7",
        data,
        meta,
        tolerance,
        **{"num_classes": len(data["logits"][0]), **given(kwargs, names)},
        mixer={"name": "softmax", **mixer},
        stem={"name": "tokens_to_token", **stem},
    )


@model_runner("vig")
def vig(data, meta, tolerance):
    kwargs = meta["kwargs"]
    assert kwargs["rope_mode"] == "none" and kwargs["expand_v"] == 1.0
    mixer = {"use_act_in_conv": "conv_activation", "use_out_act": "output_activation"}
    mixer = given(kwargs, {**mixer, "expand_k": "expand_k"})
    shapes = {key: shape for key, shape, *_ in meta["keys"]}
    names = {"depth": "depth", "embed_dim": "dim", "num_heads": "num_heads"}
    names |= {"depths": "depths", "dims": "dims"}
    arguments = {"num_classes": len(data["logits"][0]), **given(kwargs, names)}
    preset = "vig_h_tiny" if "depths" in kwargs else "vig_tiny"
    if "depths" in kwargs:
        inside = [shapes[f"layers.{s}.blocks.0.mlp.fc2.weight"] for s in range(4)]
        ratio = tuple(hidden / width for width, hidden in inside)
    else:
        width, hidden = shapes["blocks.0.mlp.down_proj.weight"]
        ratio = hidden / width
    mixer = {**models.PRESETS[preset]["mixer"], **mixer}
    built(preset, data, meta, tolerance, mixer=mixer, mlp_ratio=ratio, **arguments)


@model_runner("contracon")
def contracon(data, meta, tolerance):
    kwargs = meta["kwargs"]
    names = {"n_conv_layers": "layers", "tokenizer_kernel": "kernel_size"}
    later = kwargs["task"].startswith("second")
    tasks = {"num_tasks": 2, "task": 1} if later else {}
    mixer = given(kwargs, {"ker_sz": "kernel_size"})
    built(
        "contracon_cct6",
        data,
        meta,
        tolerance,
        **given(kwargs, TRANSFORMER),
        stem={"name": "conv_tokenizer", **given(kwargs, names)},
        mixer={"name": "task_convolved", **tasks, **mixer},
    )


@model_runner("halonet")
def halonet(data, meta, tolerance):
    kwargs = meta["kwargs"]
    preset = kwargs["entry"]
    arguments = {"num_classes": len(data["logits"][0])}
    mixer = given(kwargs, {k: k for k in ("block_size", "halo_size")})
    heads = kwargs.get("num_heads")
    if heads is not None and not isinstance(heads, int):
        heads = tuple(heads)
    arguments |= {"num_heads": heads} if isinstance(heads, tuple) else {}
    arguments |= given(kwargs, {"act": "activation"})
    mixer = {**models.PRESETS[preset]["mixer"], **mixer}
    built(preset, data, meta, tolerance, mixer=mixer, **arguments)


@model_runner("osnet")
def osnet(data, meta, tolerance):
    kwargs = meta["kwargs"]
    keys = {key for key, *_ in meta["keys"]}
    kind = "osnet_ibn" if "conv2.0.IN.weight" in keys else "osnet"
    kind = "osnet_ain" if "pool2.0.conv.weight" in keys else kind
    names = {"channels": "widths", "num_classes": "num_classes"}
    arguments = given(kwargs, {**names, "feature_dim": "feature_dim"})
    if "blocks" in kwargs:
        blocks = kwargs["blocks"].split("|")
        kinds = {"plain": "none", "INin": "inside"}
        found = (tuple(kinds[k] for k in stage.split()) for stage in blocks)
        arguments["blocks"] = tuple(found)
    model, variables = built(f"{kind}_x0_25", data, meta, tolerance, **arguments)
    images = image_batch(meta, tolerance.dtype)
    features = np.asarray(model.apply(variables, images, features=True))
    np.testing.assert_allclose(features, data["features"], atol=10 * tolerance.value)


PYRAMID = {
    "depths": "depths",
    "embed_dim": "dims",
    "embed_dims": "dims",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "mlp_ratios": "mlp_ratio",
    "projection": "last_width",
}


@model_runner("stvit")
def stvit(data, meta, tolerance):
    kwargs = meta["kwargs"]
    sides = zip(kwargs["stoken_size"], kwargs["n_iter"], strict=True)
    names = ("token_size", "iterations")
    mixer = tuple(
        {"name": "super_token", "qkv_bias": kwargs["qkv_bias"]}
        | dict(zip(names, pair, strict=True))
        for pair in sides
    )
    dim = kwargs["embed_dim"][0]
    stem = {
        **models.PRESETS["stvit_small"]["stem"],
        "hidden": (dim // 2, dim // 2, dim),
    }
    built(
        "stvit_small",
        data,
        meta,
        tolerance,
        num_classes=len(data["logits"][0]),
        **given(kwargs, PYRAMID),
        mixer=mixer,
        stem=stem,
        layer_scale=tuple(1e-6 if has else None for has in kwargs["layerscale"]),
    )


@model_runner("ravlt")
def ravlt(data, meta, tolerance):
    kwargs = meta["kwargs"]
    kinds = {"l": "rala", "v": "rala_softmax"}
    scales = zip(kwargs["layerscales"], kwargs["layer_init_values"], strict=True)
    built(
        "ravlt_t",
        data,
        meta,
        tolerance,
        num_classes=len(data["logits"][0]),
        **given(kwargs, PYRAMID),
        mixer=tuple(kinds[flag] for flag in kwargs["flags"]),
        layer_scale=tuple(float(value) if has else None for has, value in scales),
    )


@model_runner("iformer")
def iformer(data, meta, tolerance):
    kwargs, start, mixers = meta["kwargs"], 0, []
    shapes = {key: shape for key, shape, *_ in meta["keys"]}
    for depth, side in zip(kwargs["depths"], kwargs["pool_sizes"], strict=True):
        heads = kwargs["attention_heads"][start : start + depth]
        spec = {"name": "inception", "pool_size": side, "qkv_bias": kwargs["qkv_bias"]}
        mixers.append(tuple({**spec, "attention_heads": n} for n in heads))
        start += depth
    built(
        "iformer_small",
        data,
        meta,
        tolerance,
        num_classes=len(data["logits"][0]),
        **given(kwargs, PYRAMID),
        mixer=tuple(mixers),
        pos_embed=tuple(shapes[f"pos_embed{i + 1}"][1] for i in range(4)),
        layer_scale=tuple(
            1e-6 if f"blocks{i + 1}.0.layer_scale_1" in shapes else None
            for i in range(4)
        ),
    )


@model_runner("ulsam_mobilenet")
def ulsam_mobilenet(data, meta, tolerance):
    kwargs = meta["kwargs"]
    version = "v1" if "v1" in kwargs["entry"] else "v2"
    places = (name.split(".")[1:] for name in kwargs["replaced_blocks"])
    built(
        f"ulsam_mobilenet_{version}",
        data,
        meta,
        tolerance,
        num_classes=len(data["logits"][0]),
        mixer={"name": "ulsam", "num_groups": kwargs["num_splits"]},
        replaced=tuple((int(stage), int(block)) for stage, block in places),
    )
