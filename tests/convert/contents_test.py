"""Arrays and settings that a file may bring: what counts, what is refused, and why."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from normjax import convert, models
from normjax.convert.names import abstract_variables
from normjax.convert.settings import published_settings, settle
from normjax.core.errors import UserError

VIT = {"dim": 12, "depth": 1, "num_heads": 2, "num_classes": 5, "pool": "cls"}
TEXT = {"dim": 12, "depth": 1, "num_heads": 2, "mlp_hidden": 8, "vocab_size": 7}
SWIN = {"depths": (2, 2), "dims": (8, 16), "num_heads": (1, 2), "num_classes": 4}


def model_of(kind, **arguments):
    sizes = {"vit": VIT, "lm_tiny": TEXT, "swin_tiny": SWIN}[kind]
    return models.build(kind, **{**sizes, **arguments})


@functools.cache
def _state(kind, side, **arguments):
    model, rng = model_of(kind, **arguments), np.random.default_rng(0)
    abstract = abstract_variables(model, (side, side, 3))

    def value(leaf):
        return rng.standard_normal(leaf.shape).astype(leaf.dtype)

    return convert.to_torch(model, jax.tree.map(value, abstract), (side, side))


def state_of(kind, side=32, **arguments):
    return dict(_state(kind, side, **arguments))


def refused(model, state, words, shape=(32, 32, 3)):
    with pytest.raises(UserError, match=words) as error:
        convert.from_torch(model, state, shape)
    assert "\n" not in str(error.value) and "damaged" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_in_float32_are_refused(value):
    state = state_of("vit")
    name = "blocks.0.mlp.fc1.weight"
    state[name] = state[name].astype(np.float64)
    state[name][0, :3] = value
    with np.errstate(over="ignore"):
        words = r"blocks\.0\.mlp\.fc1\.weight holds 3 of 576 values"
        refused(model_of("vit"), state, words)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, bool, np.complex64])
def test_weights_that_are_no_floats_are_refused(kind):
    state = state_of("vit")
    state["head.weight"] = state["head.weight"].astype(kind)
    refused(model_of("vit"), state, r"head\.weight is quantized \(")
    state = state_of("vit") | {"head.weight_scale": np.ones(1, np.float32)}
    refused(model_of("vit"), state, r"head\.weight_scale is quantized")


@pytest.mark.parametrize("kind", [np.float16, "bfloat16", np.float64])
def test_other_floats_are_cast(kind):
    state = {k: v.astype(kind) for k, v in state_of("vit").items()}
    converted = convert.from_torch(model_of("vit"), state, (32, 32, 3))
    for leaf in jax.tree.leaves(converted.variables):
        assert leaf.dtype == np.float32


SHAPES = {
    "head.weight": (
        (7, 12),
        r"shape \(7, 12\) instead of \(5, 12\): the file has 7",
    ),
    "pos_embed": ((1, 17, 12), r"instead of \(1, 5, 12\): .* for images of 64 pixels"),
    "patch_embed.proj.weight": ((12, 1, 16, 16), "reads images of 1 channels"),
    "norm.weight": ((0,), r"has shape \(0,\) instead of \(12,\): it is empty"),
    "blocks.0.mlp.fc1.weight": (
        (40, 12),
        r"shape \(40, 12\) instead of \(48, 12\)",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_say_what_differs(name):
    shape, words = SHAPES[name]
    state = state_of("vit") | {name: np.ones(shape, np.float32)}
    refused(model_of("vit"), state, words)


def test_several_shapes_name_the_one_that_tells_most():
    state = state_of("vit", num_classes=9)
    refused(
        model_of("vit"), state, r"head\.(weight|bias) \(and 1 more\) .* has 9 classes"
    )


@pytest.mark.parametrize(("made_at", "used_at"), [(112, 56), (56, 112)])
def test_masks_are_recomputed_for_the_size_of_the_images(made_at, used_at):
    state = state_of("swin_tiny", made_at)
    masks = {name for name in state if name.endswith("attn_mask")}
    assert masks
    converted = convert.from_torch(model_of("swin_tiny"), state, (used_at, used_at, 3))
    assert masks <= converted.dropped.keys()
    for name in masks:
        wrong = {**state, name: np.zeros_like(state[name])}
        words = f"{name} is not what the model computes for it"
        refused(model_of("swin_tiny"), wrong, words, (used_at, used_at, 3))


def test_windows_of_another_size_are_named():
    mixer = {"name": "window", "window_size": 4}
    words = "the file has window_size 7, the model 4"
    refused(model_of("swin_tiny", mixer=mixer), state_of("swin_tiny", 56), words)


def test_a_head_that_is_the_table():
    tied = state_of("lm_tiny", tied=True)
    table = tied["model.embed_tokens.weight"]
    repeated = {**tied, "lm_head.weight": table}
    converted = convert.from_torch(model_of("lm_tiny", tied=True), repeated, ())
    assert "serves twice" in converted.dropped["lm_head.weight"]
    norm = {"name": "rms_norm"}
    assert convert.arguments_of(tied, norm)["tied"] is True
    other = {**tied, "lm_head.weight": table + 1}
    for state in (repeated, other):
        assert "tied" not in convert.arguments_of(state, norm)
    words = r"lm_head\.weight differs from model\.embed_tokens\.weight"
    refused(model_of("lm_tiny", tied=True), other, words, ())
    refused(model_of("lm_tiny"), tied, r"lacks lm_head\.weight", ())


def test_another_rotary_base_is_named():
    state = state_of("lm_tiny", rotary_base=5e5)
    refused(
        model_of("lm_tiny"),
        state,
        "computes for it, but of config.model.rotary_base=500000",
        (),
    )


LLAMA = {
    "model_type": "llama",
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "sliding_window": None,
    "head_dim": 6,
}


def settled(tmp_path, kind="lm_tiny", norm="rms_norm", data=None, **given):
    """{field: (value, before)} of what config.json changes, and the config."""
    base = LLAMA if kind == "lm_tiny" else {"architecture": "deit"}
    (tmp_path / "config.json").write_text(json.dumps({**base, **given}))
    spec = {"name": norm, "epsilon": 1e-6}
    config = ConfigDict({"model": {"norm": spec}, "data": data or {}})
    settings = published_settings(tmp_path)
    changes = settle(config, model_of(kind), settings)
    return {c.field: (c.value, c.before) for c in changes}, config


HEADS = {"num_key_value_heads": 4, "head_dim": 3}
CHANGES = {
    "num_attention_heads": (
        4,
        "num_heads",
        2,
        {"num_key_value_heads": 4, "head_dim": 3},
    ),
    "num_hidden_layers": (3, "depth", 1, {}),
    "intermediate_size": (16, "mlp_hidden", 8, {}),
    "rope_theta": (5e5, "rotary_base", 1e4, {}),
    "tie_word_embeddings": (True, "tied", False, {}),
    "hidden_size": (24, "dim", 12, {"head_dim": 12}),
}


@pytest.mark.parametrize("field", CHANGES)
def test_settings_beside_the_weights_count(tmp_path, field):
    value, ours, before, more = CHANGES[field]
    assert settled(tmp_path)[0] == {}
    changes, config = settled(tmp_path, **{field: value}, **more)
    assert changes == {f"model.{ours}": (value, before)}
    assert config.model[ours] == value


def test_heads_that_share_keys_and_values_count(tmp_path):
    changes, config = settled(tmp_path, num_key_value_heads=1)
    mixer = {"name": "grouped_query", "num_kv_heads": 1}
    assert changes == {"model.mixer": (mixer, "softmax")}
    assert config.model.mixer.to_dict() == mixer


def test_epsilon_pixels_and_newer_rotary_settings_count(tmp_path):
    changes, config = settled(tmp_path, rms_norm_eps=1e-5)
    assert changes == {"model.norm.epsilon": (1e-5, 1e-6)}
    assert config.model.norm.epsilon == 1e-5
    rope = {"rope_theta": 7e4, "rope_type": "default"}
    changes, _ = settled(tmp_path, rope_theta=None, rope_parameters=rope)
    assert changes == {"model.rotary_base": (7e4, 1e4)}
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    data = {"mean": (0.4, 0.4, 0.4), "std": (0.5,)}
    changes, config = settled(
        tmp_path, "vit", "layer_norm", data, pretrained_cfg=half, num_heads=3
    )
    assert changes.keys() == {"model.num_heads", "data.mean"}
    assert config.data.mean == (0.5, 0.5, 0.5)
    augment = {"image_size": 224, "eval_resize": 256, "interpolation": "bicubic"}
    cut = {"crop_pct": 0.95, "interpolation": "bilinear", "input_size": [3, 224, 224]}
    changes, config = settled(
        tmp_path,
        "vit",
        "layer_norm",
        {**data, "augment": augment},
        pretrained_cfg=cut,
        num_heads=3,
    )
    settled_to = {"eval_resize": 235, "interpolation": "bilinear"}
    assert config.data.augment.to_dict() == {**augment, **settled_to}
    assert changes["data.augment.eval_resize"] == (235, 256)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("sliding_window", 4096),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("model_type", "gemma2"),
        ("head_dim", 16),
        ("attention_bias", True),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_settings_that_no_model_of_ours_has_are_refused(tmp_path, field, value):
    with pytest.raises(UserError, match=rf"config\.json says {field}="):
        settled(tmp_path, **{field: value})
