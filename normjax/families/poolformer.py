"""PoolFormer (Yu et al., 2022)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, LINEAR, NORM, POINTWISE, Row

_SMALL, _MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)
_SIZES: dict[str, tuple[Any, ...]] = {
    # depths, widths, first layer scale, drop path
    "s12": ((2, 2, 6, 2), _SMALL, 1e-5, 0.1),
    "s24": ((4, 4, 12, 4), _SMALL, 1e-5, 0.1),
    "s36": ((6, 6, 18, 6), _SMALL, 1e-6, 0.2),
    "m36": ((6, 6, 18, 6), _MEDIUM, 1e-6, 0.3),
    "m48": ((8, 8, 24, 8), _MEDIUM, 1e-6, 0.4),
}
_ONE_GROUP = {"name": "group_norm", "num_groups": 1, "epsilon": 1e-5}
_BLOCK = "blocks_{s}_{i}"


def _poolformer(size: str) -> Arguments:
    depths, dims, layer_scale, _ = _SIZES[size]
    stem = {"kernel_size": 7, "stride": 4, "padding": 2}
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": (1, 1, 1, 1),
        "norm": _ONE_GROUP,
        "embed_norm": "none",
        "mixer": "pooling",
        "stem": {"name": "conv_norm", **stem},
        "merge": {"name": "conv_norm", **merge},
        "layer_scale": layer_scale,
    }


def _layout(stem: str, block: str, merge: str, scale: str, end: str) -> list[Row]:
    norm, head = end.split()
    scales = {
        f"{branch}_layer_scale/scale": (f"layer_scale{scale.format(n)}", "same")
        for n, branch in enumerate(("mixer", "mlp"), 1)
    }
    return [
        ("stem/proj", stem, CONV),
        ("merge_{s}/proj", merge, CONV),
        (f"{_BLOCK}/norm1", f"{block}.norm1", NORM),
        (f"{_BLOCK}/norm2", f"{block}.norm2", NORM),
        (f"{_BLOCK}/mlp/fc1", f"{block}.mlp.fc1", POINTWISE),
        (f"{_BLOCK}/mlp/fc2", f"{block}.mlp.fc2", POINTWISE),
        (_BLOCK, block, scales),
        ("norm", norm, NORM),
        ("head", head, LINEAR),
    ]


POOLFORMER = Family(
    name="poolformer",
    presets={f"poolformer_{size}": _poolformer(size) for size in _SIZES},
    layouts={
        "poolformer": _layout(
            "patch_embed.proj",
            "network.{even}.{i}",
            "network.{odd}.proj",
            "_{}",
            "norm head",
        ),
        "poolformer_timm": _layout(
            "stem.conv",
            "stages.{s}.blocks.{i}",
            "stages.{s}.downsample.conv",
            "{}.scale",
            "head.norm head.fc",
        ),
    },
    anchors=("patch_embed.proj.weight", "stem.conv.weight"),
    classes=("head.weight", "head.fc.weight"),
    # timm averages before its last norm, with the same weights.
    forms={
        "network.0.0.norm1.weight": {"pool": "mean", "final_norm": None},
        "head.norm.weight": {"pool": "mean_first", "final_norm": layer_norm(1e-6)},
    },
    epsilon=1e-5,
    preprocessing={
        "": Preprocessing(crop_ratio=0.9),
        "poolformer_m": Preprocessing(crop_ratio=0.95),
    },
    figures={
        "poolformer_s12": Figures(11_915_176, 1.812, 77.2),
        "poolformer_s24": Figures(21_388_968, 3.392, 80.3),
        "poolformer_s36": Figures(30_862_760, 4.972, 81.4),
        "poolformer_m36": Figures(56_172_520, 8.759, 82.1),
        "poolformer_m48": Figures(73_473_448, 11.533, 82.5),
    },
    recipes={
        size: Recipe(rate, warmup_epochs=5) for size, (*_, rate) in _SIZES.items()
    },
    config="finetune.py:{preset}",
)
