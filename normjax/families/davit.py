"""DaViT (Ding et al., 2022): windows and channels in turn."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, DWC, LINEAR, NORM, Row, block

_SIZES: dict[str, tuple[Any, ...]] = {
    # depths in pairs, width and heads of the first stage
    "tiny": ((1, 1, 3, 1), 96, 3),
    "small": ((1, 1, 9, 1), 96, 3),
    "base": ((1, 1, 9, 1), 128, 4),
    "large": ((1, 1, 9, 1), 192, 6),
    "huge": ((1, 1, 9, 1), 256, 8),
    "giant": ((1, 1, 12, 3), 384, 12),
}
_BLOCK = "blocks_{s}_{i}"


def _davit(size: str) -> Arguments:
    pairs, dim, heads = _SIZES[size]
    window = {"name": "window", "core": "softmax", "window_size": 7, "shift": 0}
    return {
        "name": "pyramid",
        "depths": tuple(2 * n for n in pairs),
        "dims": tuple(dim << i for i in range(4)),
        "num_heads": tuple(heads << i for i in range(4)),
        "norm": layer_norm(1e-5),
        "mixer": ((window, "channel"),) * 4,
        "stem": {"name": "conv_norm", "kernel_size": 7, "stride": 4, "padding": 3},
        "merge": "norm_conv",
        "position_conv": ("mixer", "mlp"),
        "pool": "mean_first",
        "pad": True,
    }


def _layout(stem: str, block_: str, cpe: str, merge: str, end: str) -> list[Row]:
    conv, stem_norm = stem.split()
    merge_conv, merge_norm = merge.split()
    norm, head = end.split()
    return [
        ("stem/proj", conv, CONV),
        ("stem/norm", stem_norm, NORM),
        (f"{_BLOCK}/position_mixer", f"{block_}.{cpe.format(1, 0)}.proj", DWC),
        (f"{_BLOCK}/position_mlp", f"{block_}.{cpe.format(2, 1)}.proj", DWC),
        *block(_BLOCK, block_),
        ("merge_{s}/norm", merge_norm, NORM),
        ("merge_{s}/proj", merge_conv, CONV),
        ("norm", norm, NORM),
        ("head", head, LINEAR),
    ]


DAVIT = Family(
    name="davit",
    presets={f"davit_{size}": _davit(size) for size in _SIZES},
    layouts={
        "davit": _layout(
            "patch_embeds.0.proj patch_embeds.0.norm",
            "main_blocks.{s}.{pair}.{rest}",
            "cpe.{1}",
            "patch_embeds.{s}.proj patch_embeds.{s}.norm",
            "norms head",
        ),
        "davit_timm": _layout(
            "stem.conv stem.norm",
            "stages.{s}.blocks.{pair}.{rest}",
            "cpe{0}",
            "stages.{s}.downsample.conv stages.{s}.downsample.norm",
            "head.norm head.fc",
        ),
    },
    anchors=("patch_embeds.0.proj.weight", "stem.conv.weight"),
    classes=("head.weight", "head.fc.weight"),
    epsilon=1e-5,
    preprocessing={"": Preprocessing(crop_ratio=0.9)},
    figures={
        "davit_tiny": Figures(28_360_168, 4.522, 82.8),
        "davit_small": Figures(49_745_896, 8.773, 84.2),
        "davit_base": Figures(87_954_408, 15.474, 84.6),
        "davit_large": Figures(196_811_752, 34.540),
        "davit_huge": Figures(348_922_856, 61.159),
        "davit_giant": Figures(1_406_470_120, 192.785),
    },
    recipes={size: Recipe(drop_path=0.1) for size in _SIZES},
    config="finetune.py:{preset}",
)
