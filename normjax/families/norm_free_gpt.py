"""GPT-2 without the norms of its blocks (ReLU's revival; Jha and Reagen, 2024)."""

from typing import Any

from normjax.families.base import Arguments, Family, layer_norm
from normjax.families.layout import NORM, Kind, Row

_VOCABULARY = 50_257
_EPSILON = 1e-5
_ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "relu": "relu",
    "prelu": {"name": "prelu", "per_channel": False, "slope_init": 0.01},
}


def _norm_free(activation: str) -> Arguments:
    return {
        "name": "decoder",
        "vocab_size": _VOCABULARY,
        "dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_hidden": 3072,
        "norm": layer_norm(_EPSILON),
        "placement": "final",
        "mixer": {"name": "softmax", "qkv_bias": True, "value_bias": False},
        "mlp": {"name": "mlp", "use_bias": False},
        "activation": _ACTIVATIONS[activation],
        "rotary_base": None,
        "max_length": 1024,
        "tied": True,
    }


# Their weights are (in, out), as ours.
_SAME: Kind = {"kernel": ("weight", "same"), "bias": ("bias", "same")}


def _slope(model: Any, stage: int) -> Kind:
    """The slope of a layer, which stands among those of all layers there."""
    return {"slope": ("slopes", ("own_entry", stage, model.depth))}


def _rows() -> list[Row]:
    ours, theirs = "blocks_{i}", "transformer.h.{i}"
    return [
        ("", "transformer.wte", {"embed": ("weight", "same")}),
        ("", "transformer.wpe", {"pos_embed": ("weight", "same")}),
        (f"{ours}/mixer/qk", f"{theirs}.attn.qk_attn", _SAME),
        (f"{ours}/mixer/v", f"{theirs}.attn.v_attn", _SAME),
        (f"{ours}/mixer/proj", f"{theirs}.attn.c_proj", _SAME),
        (f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc", _SAME),
        (f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj", _SAME),
        ("blocks_{s}/mlp/act", "transformer.h.{s}.mlp.act", _slope),
        ("norm", "transformer.ln_f", NORM),
    ]


NORM_FREE_GPT = Family(
    name="norm_free_gpt2",
    kind="tokens",
    presets={f"norm_free_gpt2_{name}": _norm_free(name) for name in _ACTIVATIONS},
    layouts={"norm_free_gpt2": _rows()},
    anchors=("transformer.wte.weight",),
    tied={"lm_head.weight": "transformer.wte.weight"},
    tokens=("transformer.wte.weight",),
    model_types=("gpt2",),
    epsilon=_EPSILON,
)
