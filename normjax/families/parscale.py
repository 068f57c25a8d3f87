"""ParScale (Chen et al., 2025): Qwen2 that reads in parallel streams."""

from collections.abc import Mapping
from typing import Any

from normjax.families.base import Arguments, Family
from normjax.families.layout import LINEAR, Kind, Row
from normjax.families.llama import grouped_layout, llama

_BYTES = 257  # and the end of a document
_PREFIXES: Kind = {
    "prefix_key": ("prefix_k", "prefixes"),
    "prefix_value": ("prefix_v", "prefixes"),
}


def mixer(key_heads: int, prefix_length: int) -> Arguments:
    """The attention of a layer."""
    kind = {"name": "prefix_attention", "qkv_bias": True}
    return {**kind, "num_kv_heads": key_heads, "prefix_length": prefix_length}


def published(given: Mapping[str, Any]) -> Arguments:
    """Arguments of the model that a published config.json describes.

    Raises:
      KeyError: it lacks something.
    """
    heads = given.get("num_key_value_heads") or given["num_attention_heads"]
    return {
        "streams": given["parscale_n"],
        "smoothing": given.get("parscale_attn_smooth", 0.01),
        "mixer": mixer(heads, given["parscale_n_tokens"]),
    }


def _rows() -> list[Row]:
    return [
        *grouped_layout(),
        ("blocks_{i}/mixer", "model.layers.{i}.self_attn", _PREFIXES),
        ("aggregate/fc1", "model.aggregate_layer.0", LINEAR),
        ("aggregate/fc2", "model.aggregate_layer.2", LINEAR),
    ]


PARSCALE = Family(
    name="parscale",
    kind="tokens",
    presets={
        "parscale_tiny": llama(
            192,
            4,
            4,
            512,
            name="parallel_decoder",
            vocab_size=_BYTES,
            mixer=mixer(2, 48),
            streams=4,
        )
    },
    layouts={"parscale": _rows()},
    anchors=("model.embed_tokens.weight",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    tokens=("model.embed_tokens.weight",),
    model_types=("qwen2_parscale",),
    described=published,
)
