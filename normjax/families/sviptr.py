"""SVIPTR, VIPTR in its code (Cheng et al., 2024): lines of text."""

from typing import Any

from normjax.families.base import Arguments, Family, Recipe, layer_norm
from normjax.families.layout import (
    CONV,
    LINEAR,
    NORM,
    POINTWISE,
    Kind,
    Row,
    depthwise,
)

_STRIPES = "cross_shaped_window"
_NEAR_AND_FAR = (
    {"name": _STRIPES, "split_size": 2},
    {"name": "overlapping_spatial_reduction", "sr_ratio": 2},
)
_FIRST = {
    # mixers of the stages, stages that begin with a merge
    "v1": (
        (
            {"name": _STRIPES, "split_size": 1},
            {"name": _STRIPES, "split_size": 2},
            "softmax",
            "softmax",
        ),
        (1, 3),
    ),
    "v2": (
        ({"name": _STRIPES, "split_size": 1}, _NEAR_AND_FAR, "softmax"),
        (1, 2),
    ),
}
_SIZES: dict[str, tuple[Any, ...]] = {
    # widths, depths, heads, MLP ratios
    "v1_t": ((64, 128, 128, 256), (3, 3, 3, 3), (2, 4, 4, 8), (3.0, 3.0, 4.0, 4.0)),
    "v1_l": ((192, 256, 256, 512), (3, 7, 2, 9), (6, 8, 8, 16), (3.0, 3.0, 4.0, 4.0)),
    "v2_t": ((64, 128, 256), (3, 3, 3), (2, 4, 8), (3.0, 4.0, 4.0)),
    "v2_b": ((128, 256, 384), (3, 6, 9), (4, 8, 12), (4.0, 4.0, 4.0)),
}
CLASSES = 37
"""Of the released models: the blank, then 0 to 9 and a to z."""
_ROOT = "FeatureExtraction"


def _sviptr(size: str) -> Arguments:
    dims, depths, heads, ratios = _SIZES[size]
    mixer, merges = _FIRST[size.partition("_")[0]]
    units = {"hidden": (dims[0] // 2,), "strides": (2, 2), "pool": False}
    return {
        "name": "text_line",
        "depths": depths,
        "dims": dims,
        "num_heads": heads,
        "mlp_ratio": ratios,
        "norm": layer_norm(1e-5),
        "embed_norm": {"name": "batch_norm", "epsilon": 1e-5},
        "final_norm": layer_norm(1e-6),
        "stem": {"name": "conv_units", **units},
        "mixer": mixer,
        "merges": merges,
    }


def _around(ours: str, theirs: str) -> list[Row]:
    """The norms and the MLP of a layer."""
    return [
        (f"{ours}/norm1", f"{theirs}.norm1", NORM),
        (f"{ours}/norm2", f"{theirs}.norm2", NORM),
        (f"{ours}/mlp/fc1", f"{theirs}.mlp.net.0", LINEAR),
        (f"{ours}/mlp/fc2", f"{theirs}.mlp.net.3", LINEAR),
    ]


def _attention(ours: str, theirs: str) -> list[Row]:
    return [
        (f"{ours}/mixer/qkv", f"{theirs}.qkv", LINEAR),
        (f"{ours}/mixer/proj", f"{theirs}.proj", LINEAR),
    ]


def _stripes(ours: str, theirs: str) -> list[Row]:
    lepe = depthwise("lepe", "get_v")
    return [
        *_around(ours, theirs),
        *_attention(ours, theirs),
        (f"{ours}/mixer/vertical", f"{theirs}.attns.0", lepe),
        (f"{ours}/mixer/horizontal", f"{theirs}.attns.1", lepe),
    ]


def _far(ours: str, theirs: str) -> list[Row]:
    mixer, reduction = f"{theirs}.token_mixer", f"{theirs}.token_mixer.sr"
    kernels: Kind = {
        "sr_kernel": ("sr.0.conv.weight", "depthwise"),
        "sr_scale": ("sr.1.conv.weight", "gains"),
        **depthwise("local", "local_conv"),
    }
    return [
        *_around(ours, theirs),
        (f"{ours}/mixer/q", f"{mixer}.q", POINTWISE),
        (f"{ours}/mixer/kv", f"{mixer}.kv", POINTWISE),
        (f"{ours}/mixer/norm", f"{reduction}.0.bn", NORM),
        (f"{ours}/mixer/norm_out", f"{reduction}.1.bn", NORM),
        (f"{ours}/mixer", mixer, kernels),
    ]


def _rows() -> list[Row]:
    layer = f"{_ROOT}.layers.{{s}}"
    rows: list[Row] = []
    for i in (0, 1):
        stem = f"{_ROOT}.patch_embed.proj.{i}"
        rows += [
            (f"stem/unit_{i}/conv", f"{stem}.conv", CONV),
            (f"stem/unit_{i}/norm", f"{stem}.norm", NORM),
            # The first two stages have stripes, those behind them attention.
            *_stripes(f"blocks_{i}_{{i}}", f"{_ROOT}.layers.{i}.blocks.{{i}}"),
        ]
    block, mixed, halves = "blocks_{s}_{i}", "halves_{s}/permutation", "halves_{s}"
    theirs, downsample = f"{layer}.blocks.{{i}}", f"{_ROOT}.layers.{{last}}.downsample"
    return [
        *rows,
        *_around(block, theirs),
        (f"{block}/mixer/qkv", f"{theirs}.mixer.qkv", LINEAR),
        (f"{block}/mixer/proj", f"{theirs}.mixer.proj", LINEAR),
        *_stripes(f"{halves}/local_{{i}}", f"{layer}.local_unit.{{i}}"),
        *_far(f"{halves}/global_{{i}}", f"{layer}.global_unit.{{i}}"),
        (mixed, f"{layer}.proj", depthwise("conv", "0")),
        (f"{mixed}/norm_0", f"{layer}.proj.2", NORM),
        (f"{mixed}/fc1", f"{layer}.proj.3", POINTWISE),
        (f"{mixed}/norm_1", f"{layer}.proj.5", NORM),
        (f"{mixed}/fc2", f"{layer}.proj.6", POINTWISE),
        (f"{mixed}/norm_2", f"{layer}.proj.7", NORM),
        ("merge_{s}/reduction", f"{downsample}.reduction", CONV),
        ("merge_{s}/norm", f"{downsample}.norm", NORM),
        ("norm", f"{_ROOT}.norm", NORM),
        ("neck", f"{_ROOT}.mlp_head.0", LINEAR),
        ("head", "Prediction", LINEAR),
    ]


SVIPTR = Family(
    name="sviptr",
    presets={f"sviptr_{size}": _sviptr(size) for size in _SIZES},
    kind="lines",
    layouts={"sviptr": _rows()},
    anchors=(f"{_ROOT}.patch_embed.proj.0.conv.weight",),
    classes=("Prediction.weight",),
    epsilon=1e-5,
    recipes={size: Recipe(drop_path=0.1) for size in _SIZES},
    config="digit_lines.py:variant={preset}",
)
