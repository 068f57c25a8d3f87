"""Swin (Liu et al., 2021), with PRepBN, SLAB-Swin and FLatten-Swin."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
    prepbn,
)
from normjax.families.layout import CONV, CORE, LINEAR, NORM, Row, block

_SIZES = {
    # depths, width of the first stage, its heads
    "tiny": ((2, 2, 6, 2), 96, 3),
    "small": ((2, 2, 18, 2), 96, 3),
    "base": ((2, 2, 18, 2), 128, 4),
}
_BLOCK = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"
_RATES = {"tiny": 0.2, "small": 0.3, "base": 0.5}
_DROP_PATHS = {
    **_RATES,
    "tiny_prepbn": 0.1,
    "small_prepbn": 0.3,
    "base_prepbn": 0.5,
    **{f"slab_{size}": rate for size, rate in _RATES.items()},
    **{f"flatten_{size}": rate for size, rate in _RATES.items()},
}


def _swin(size: str, linear: str | None = None, **other: Any) -> Arguments:
    depths, dim, heads = _SIZES[size]
    local = {"name": "window", "window_size": 7}
    # The whole map of either stage at 224 pixels.
    whole = {"name": linear, "window_size": 56}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": tuple(dim << i for i in range(4)),
        "num_heads": tuple(heads << i for i in range(4)),
        "norm": layer_norm(1e-5),
        "mixer": (whole, whole, local, local) if linear else local,
        **other,
    }


def _presets(size: str) -> dict[str, Arguments]:
    norm = prepbn(60_000, 1e-5)
    return {
        f"swin_{size}": _swin(size),
        f"swin_{size}_prepbn": _swin(size, norm=norm),
        f"slab_swin_{size}": _swin(size, "window_sla", norm=norm),
        f"flatten_swin_{size}": _swin(size, "window_focused_linear"),
    }


def _layout(downsample: str, head: str) -> list[Row]:
    return [
        ("stem/proj", "patch_embed.proj", CONV),
        ("stem/norm", "patch_embed.norm", NORM),
        *block(*_BLOCK),
        (f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn", CORE),
        ("merge_{s}/norm", f"layers.{downsample}.downsample.norm", NORM),
        ("merge_{s}/reduction", f"layers.{downsample}.downsample.reduction", LINEAR),
        ("norm", "norm", NORM),
        ("head", head, LINEAR),
    ]


def _recipe(variant: str, drop_path: float) -> Recipe:
    halved = variant in ("slab_base", "flatten_base")
    return Recipe(drop_path, batch_size=512 if halved else 1024, clip_norm=5.0)


SWIN = Family(
    name="swin",
    presets={k: v for size in _SIZES for k, v in _presets(size).items()},
    layouts={
        "swin": _layout("{last}", "head"),
        "swin_timm": _layout("{s}", "head.fc"),
    },
    anchors=("patch_embed.proj.weight",),
    classes=("head.weight", "head.fc.weight"),
    epsilon=1e-5,
    preprocessing={"": Preprocessing()},
    figures={
        "swin_tiny": Figures(28_288_354, 4.491, 81.3),
        "swin_tiny_prepbn": Figures(28_313_151, 4.491, 81.4),
        "slab_swin_tiny": Figures(29_216_605, 4.483, 81.8),
        "flatten_swin_tiny": Figures(29_192_384, 4.483, 82.1),
        "swin_small": Figures(49_606_258, 8.741, 83.0),
        "swin_small_prepbn": Figures(49_649_511, 8.741),
        "slab_swin_small": Figures(50_552_965, 8.734, 83.6),
        "flatten_swin_small": Figures(50_510_288, 8.734, 83.5),
        "swin_base": Figures(87_768_224, 15.438, 83.5),
        "swin_base_prepbn": Figures(87_825_877, 15.438),
        "slab_swin_base": Figures(89_029_373, 15.421),
        "flatten_swin_base": Figures(88_972_488, 15.421, 83.8),
    },
    recipes={name: _recipe(name, rate) for name, rate in _DROP_PATHS.items()},
    config="imagenet_swin.py:variant={variant}",
)
