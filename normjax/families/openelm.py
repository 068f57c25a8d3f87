"""OpenELM (Mehta et al., 2024): decoders whose heads and MLPs widen with the depth."""

from collections.abc import Mapping, Sequence
from typing import Any

from normjax.families.base import Arguments, Family
from normjax.families.layout import LINEAR, NORM, Kind, Row

TOKENS = 32_000
_EPSILON = 1e-6
_SIZES = {
    # layers, width, width of a head
    "270m": (16, 1280, 64),
    "450m": (20, 1536, 64),
    "1_1b": (28, 2048, 64),
    "3b": (36, 3072, 128),
}


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value`, and at least 0.9 of it.

    Args:
      value: a width.  divisor: also the least result.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def multipliers(given: float | Sequence[float], depth: int) -> list[float]:
    """One a layer, of a list of them, one for all, or the first and the last.

    Raises:
      ValueError: a list of another length.
    """
    if not isinstance(given, Sequence):
        return [round(given, 2)] * depth
    if len(given) not in (2, depth):
        raise ValueError(f"multipliers of {len(given)} layers, not {depth}")
    if len(given) == depth:
        return [round(value, 2) for value in given]
    first, last = given
    step = (last - first) / max(depth - 1, 1)
    values = [*(first + step * i for i in range(depth - 1)), last]
    return [round(value, 2) for value in values]


def mlp_widths(
    dim: int, depth: int, given: float | Sequence[float], divisor: int = 256
) -> tuple[int, ...]:
    """The width inside the MLP of each layer.

    Args:
      given: see `multipliers`, of `dim`.  divisor: of all widths.
    """
    return tuple(make_divisible(m * dim, divisor) for m in multipliers(given, depth))


def query_heads(
    dim: int, depth: int, given: float | Sequence[float], head: int, groups: int
) -> tuple[int, ...]:
    """Heads of queries of each layer.

    Args:
      given: see `multipliers`, of `dim`.  head: width of one.
      groups: heads of queries for each of keys.
    """
    widths = (m * dim for m in multipliers(given, depth))
    return tuple(make_divisible(width, head * groups) // head for width in widths)


def mixers(
    queries: Sequence[int], keys: Sequence[int], head: int, epsilon: float = _EPSILON
) -> tuple[Arguments, ...]:
    """The attention of each layer, with so many heads, `head` wide."""
    same = {"name": "grouped_query", "joint": True}
    norm = {"name": "rms_norm", "epsilon": epsilon}
    return tuple(
        {
            **same,
            "num_heads": q,
            "num_kv_heads": k,
            "qkv_features": q * head,
            "qk_norm": dict(norm),
        }
        for q, k in zip(queries, keys, strict=True)
    )


def published_layers(given: Mapping[str, Any]) -> Arguments:
    """Arguments of the model that a published config.json describes.

    Args:
      given: what stands in it.

    Raises:
      KeyError, TypeError, ValueError: it lacks something, or lists differ in length.
    """
    dim, depth = given["model_dim"], given["num_transformer_layers"]
    heads = given["num_query_heads"], given["num_kv_heads"]
    widths = given["ffn_multipliers"], given.get("ffn_dim_divisor", 256)
    return {
        "dim": dim,
        "depth": depth,
        "mixer": mixers(*heads, given["head_dim"]),
        "mlp_hidden": mlp_widths(dim, depth, *widths),
        "rotary_base": float(given.get("rope_freq_constant", 10_000)),
        "tied": bool(given.get("share_input_output_layers", True)),
    }


def _openelm(size: str) -> Arguments:
    depth, dim, head = _SIZES[size]
    queries = query_heads(dim, depth, (0.5, 1.0), head, groups=4)
    return {
        "name": "decoder",
        "vocab_size": TOKENS,
        "dim": dim,
        "depth": depth,
        "num_heads": max(queries),
        "mlp_hidden": mlp_widths(dim, depth, (0.5, 4.0)),
        "mixer": mixers(queries, [q // 4 for q in queries], head),
        "norm": {"name": "rms_norm", "epsilon": _EPSILON},
        "rotary_base": 10_000.0,
        "tied": True,
    }


def _joint(model: Any, stage: int) -> Kind:
    """The table of the joint projection; other mixers' have no place here."""
    del stage
    first = model.mixer[0] if isinstance(model.mixer, tuple) else model.mixer
    return LINEAR if first.keywords.get("joint") else {}


def _rows(start: str) -> list[Row]:
    """The layout with names that begin with `start`."""
    ours, theirs = "blocks_{i}", f"{start}layers.{{i}}"
    return [
        ("", f"{start}token_embeddings", {"embed": ("weight", "same")}),
        (f"{ours}/norm1", f"{theirs}.attn_norm", NORM),
        (f"{ours}/norm2", f"{theirs}.ffn_norm", NORM),
        (f"{ours}/mixer/qkv", f"{theirs}.attn.qkv_proj", _joint),
        (f"{ours}/mixer/q_norm", f"{theirs}.attn.q_norm", NORM),
        (f"{ours}/mixer/k_norm", f"{theirs}.attn.k_norm", NORM),
        (f"{ours}/mixer/proj", f"{theirs}.attn.out_proj", LINEAR),
        (f"{ours}/mlp/fc1", f"{theirs}.ffn.proj_1", LINEAR),
        (f"{ours}/mlp/fc2", f"{theirs}.ffn.proj_2", LINEAR),
        ("norm", f"{start}norm", NORM),
        ("head", "lm_head", LINEAR),
    ]


OPENELM = Family(
    name="openelm",
    kind="tokens",
    presets={f"openelm_{size}": _openelm(size) for size in _SIZES},
    layouts={"openelm": _rows("transformer."), "openelm_corenet": _rows("")},
    anchors=("transformer.token_embeddings.weight",),
    tied={"lm_head.weight": "transformer.token_embeddings.weight"},
    tokens=("transformer.token_embeddings.weight", "token_embeddings.weight"),
    model_types=("openelm",),
    described=published_layers,
)
