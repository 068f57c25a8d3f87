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
from tests.golden_adapters import runner

SIZES = {"t": "tiny", "s": "small", "m": "medium", "l": "large", "b": "base"}


def preset_of(name):
    """ "slab_swin_t" -> "slab_swin_tiny"; names of timm end in patch and image size."""
    words = name.removeprefix("timm_").split("_")
    words = [SIZES.get(word, word) for word in words]
    words = [w for w in words if not re.fullmatch(r"patch16|patch4|window7|224", w)]
    return "_".join(w for w in words if w not in ("ln", "original")).replace(
        "_repbn", "_prepbn"
    )


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


def cast(variables, dtype):
    """The floating arrays in `dtype`."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype), variables
    )


def largest_error(model, variables, images, logits):
    """Of a logit, absolute."""
    actual = jax.jit(model.apply)(variables, images)
    return np.abs(np.asarray(actual, np.float64) - logits).max()


FAMILIES = ("deit", "swin", "pvt", "cswin")
SUFFIXES = ("", "prepbn", "repbn", "ln", "original")
PUBLISHED = [
    "_".join(word for word in (prefix, family, size, suffix) if word)
    for prefix in ("", "timm", "slab", "flatten")
    for family in FAMILIES
    for size in (*SIZES, *SIZES.values())
    for suffix in (*SUFFIXES, "patch16_224", "patch4_window7_224")
]


def geometry(name, kwargs):
    """Arguments of the model where the file's are given; other sizes run, too."""
    names = {"num_heads": "num_heads", "mlp_ratios": "mlp_ratio"}
    names |= {"depths": "depths", "embed_dims": "dims"}
    if "deit" in name:
        names |= {"depth": "depth", "embed_dim": "dim"}
    elif "cswin" in name:
        names["depth"] = "depths"
    found = {ours: kwargs[theirs] for theirs, ours in names.items() if theirs in kwargs}
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    if "swin" in name and "embed_dim" in kwargs:
        found["dims"] = tuple(kwargs["embed_dim"] << i for i in range(4))
    return found


@runner(*PUBLISHED)
def whole_model(data, meta, tolerance):
    """Logits, those of the folded model, and every array back as it came."""
    name = preset_of(meta["model"])
    norm = PRESETS[name].get("norm", {"name": "layer_norm"})
    state = state_of(meta, data, norm)
    side = meta["kwargs"].get("img_size", 224)
    arguments = geometry(name, meta["kwargs"]) | convert.arguments_of(state, norm)
    model = models.build(name, **arguments)
    converted = convert.from_torch(model, state, (side, side, 3))
    images = np.random.default_rng(0).standard_normal((2, 3, side, side))
    images = images.astype(np.float32).transpose(0, 2, 3, 1)
    images = jnp.asarray(images, tolerance.dtype)
    variables = cast(converted.variables, tolerance.dtype)
    error = largest_error(model, variables, images, data["logits"])
    assert error <= tolerance.value, f"logits: {error}"
    with warnings.catch_warnings():  # the published layout holds no counter
        warnings.simplefilter("ignore", fusion.UnfinishedDecay)
        folded, merged = fusion.fold(model, variables)
    if norm["name"] == "layer_norm":
        assert isinstance(model.norm(), LayerNorm) and folded is model
    else:
        assert merged.keys() == {"params"}, "norms that did not fold"
        error = largest_error(folded, merged, images, data["logits"])
        assert error <= tolerance.gradient, f"folded logits: {error}"
    back = convert.to_torch(
        model, converted.variables, (side, side, 3), converted.layout
    )
    assert back.keys() == {key for key, *_ in meta["keys"]}
    for key in state.keys() - converted.dropped.keys():
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)
