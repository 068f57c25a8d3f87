"""Swin (Liu et al., 2021), with PRepBN, SLAB-Swin and FLatten-Swin."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
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
    recipes={name: _recipe(name, rate) for name, rate in _DROP_PATHS.items()},
    config="imagenet_swin.py:variant={variant}",
)
