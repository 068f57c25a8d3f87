"""Adapters of whole networks: weights by the rule in the meta, through our import."""

import re
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from normjax import convert, fusion, models
from normjax.models import PRESETS
from normjax.norms import LayerNorm
from tests.golden_adapters import model_runner
from tests.golden_adapters.run import cast


def values_of(key, shape, dtype, offset, scale, mode):
    """One array by the fill rule of the files."""
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    normal = np.abs(normal) if mode == "abs" else normal
    return np.asarray(offset + scale * normal, dtype)


COUNTERS = {
    "warm": "warmup_steps",
    "iter": "decay_steps",
    "total_step": "decay_steps",
}


def constructed(key, shape, dtype, norm):
    """A counter as the model makes it; None for what we compute ourselves."""
    start = COUNTERS.get(key.rpartition(".")[2])
    if start is not None:
        return np.asarray(norm.get(start, 0), dtype)
    return np.zeros(shape, dtype) if not shape else None


def state_of(meta, data, norm):
    """The published state dict; index tables and masks where the file has them."""
    state = {}
    for key, shape, dtype, kind, *rule in meta["keys"]:
        if kind != "keep":
            state[key] = values_of(key, shape, dtype, *rule)
            continue
        stored = [key.replace(".", "_"), f"attn_mask_{key.replace('.', '_')}"]
        stored.append(key.rpartition(".")[2])
        found = next((data[name] for name in stored if name in data), None)
        value = constructed(key, shape, dtype, norm)
        value = found if value is None else value
        if value is not None and list(value.shape) == shape:
            state[key] = value.astype(dtype)
    return state


def largest_error(model, variables, images, logits):
    """Of a logit, absolute."""
    actual = jax.jit(model.apply)(variables, images)
    return np.abs(np.asarray(actual, np.float64) - logits).max()


def image_batch(meta, dtype):
    """The input that the meta describes, channels last."""
    batch, *shape = meta.get("input_shape") or (2, 3, 224, 224)
    rng = np.random.default_rng(meta.get("input_seed", 0))
    images = rng.standard_normal((batch, *shape)).astype(np.float32)
    return jnp.asarray(images.transpose(0, 2, 3, 1), dtype)


def preset_of(family, shapes):
    """The smallest preset of the family with the kinds of layers of these weights."""
    linear = any(".dwc." in key for key in shapes)
    progressive = any(key.endswith("alpha") for key in shapes)
    focused = any(key.endswith(".scale") for key in shapes) and not progressive
    if linear:
        return f"{'flatten' if focused else 'slab'}_{family}_tiny"
    return f"{family}_tiny_prepbn" if progressive else f"{family}_tiny"


def sizes_of(shapes, pattern, head):
    """Sizes of each stage, of keys that fit (stage, block); heads have that width."""
    found = {key: re.match(pattern, key) for key in shapes}
    blocks = {(int(m["stage"]), int(m["block"])) for m in found.values() if m}
    stages = sorted({stage for stage, _ in blocks})
    first = [
        next(shapes[k] for k, m in found.items() if m and is_first_layer(k, m, stage))
        for stage in stages
    ]
    return {
        "depths": tuple(sum(stage == s for s, _ in blocks) for stage in stages),
        "dims": tuple(width for _, width in first),
        "mlp_ratio": tuple(hidden / width for hidden, width in first),
        "num_heads": tuple(width // head for _, width in first),
    }


def is_first_layer(key, match, stage):
    """Whether that is the first layer of the MLP of a stage's first block."""
    place = int(match["stage"]), int(match["block"])
    return place == (stage, 0) and key.endswith("mlp.fc1.weight")


HEADS = {"swin": 32, "pvt": 64, "cswin": 32}
"""Widths of heads where the file does not say how many there are."""

BLOCKS = {
    "swin": r"layers\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)\.",
    "pvt": r"block(?P<stage>\d+)\.(?P<block>\d+)\.",
    "cswin": r"stage(?P<stage>\d+)\.(?P<block>\d+)\.",
}


def per_stage(preset, name, values):
    """The preset's mixers with an argument of their own for each stage.

    Stages whose mixer covers the whole map have no choice.
    """
    given = PRESETS[preset]["mixer"]
    given = given if isinstance(given, tuple) else (given,) * len(values)
    return tuple(
        {**spec, name: value} if isinstance(spec, dict) and name in spec else spec
        for spec, value in zip(given, values, strict=True)
    )


def geometry(family, preset, kwargs, shapes):
    """Arguments of the model: those that the file gives, else those of its shapes."""
    found = {}
    if family == "deit":
        dim = shapes["norm.bias" if "norm.bias" in shapes else "pos_embed"][-1]
        blocks = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
        patch = {"name": "patch", "patch_size": shapes["patch_embed.proj.weight"][-1]}
        found = {"dim": dim, "depth": len(blocks), "num_heads": dim // 64}
        found |= {"mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / dim}
        found["stem"] = patch
    else:
        found = sizes_of(shapes, BLOCKS[family], HEADS[family])
        windows = kwargs.get("window_size") or kwargs.get("split_size")
        if family == "pvt" and "sr_ratios" in kwargs:
            found["mixer"] = per_stage(preset, "sr_ratio", kwargs["sr_ratios"])
        elif windows and isinstance(windows, list):
            name = "split_size" if family == "cswin" else "window_size"
            found["mixer"] = per_stage(preset, name, windows)
        elif windows and preset.startswith("swin"):
            found["mixer"] = {**PRESETS[preset]["mixer"], "window_size": windows}
    names = {"num_heads": "num_heads", "mlp_ratios": "mlp_ratio", "depths": "depths"}
    names |= {"mlp_ratio": "mlp_ratio", "embed_dims": "dims"}
    if family == "cswin":
        names["depth"] = "depths"
    given = {ours: kwargs[name] for name, ours in names.items() if name in kwargs}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return {**found, **given}


def conforms(model, state, data, meta, tolerance):
    """Assert that a published state dict gives the logits of its file in our model.

    So does the folded model where its norms fold, and every array goes back as it came.
    """
    images = image_batch(meta, tolerance.dtype)
    converted = convert.from_torch(model, state, images.shape[1:])
    variables = cast(converted.variables, tolerance.dtype)
    error = largest_error(model, variables, images, data["logits"])
    assert error <= tolerance.value, f"logits: {error}"
    with warnings.catch_warnings():  # the published layout holds no counter
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded, merged = fusion.fold(model, variables)
    if folded is not model:
        error = largest_error(folded, merged, images, data["logits"])
        assert error <= tolerance.gradient, f"folded logits: {error}"
    back = convert.to_torch(
        model, converted.variables, images.shape[1:], converted.layout
    )
    assert back.keys() == {key for key, *_ in meta["keys"]}
    for key in state.keys() - converted.dropped.keys():
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)
    return folded, merged


@model_runner("deit", "swin", "pvt", "cswin")
def whole_model(data, meta, tolerance):
    """With LayerNorm, or with PRepBN, of which nothing is left after folding."""
    family, shapes = meta["family"], {key: shape for key, shape, *_ in meta["keys"]}
    name = preset_of(family, shapes)
    norm = PRESETS[name].get("norm", {"name": "layer_norm"})
    state = state_of(meta, data, norm)
    arguments = geometry(family, name, meta["kwargs"], shapes)
    model = models.build(name, **arguments | convert.arguments_of(state, norm))
    folded, merged = conforms(model, state, data, meta, tolerance)
    if norm["name"] == "layer_norm":
        assert isinstance(model.norm(), LayerNorm) and folded is model
    else:
        assert merged.keys() == {"params"}, "norms that did not fold"
