"""CSwin (Dong et al., 2022), with PRepBN, SLAB-CSwin and FLatten-CSwin."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    is_original,
    layer_norm,
    prepbn,
)
from normjax.families.layout import CONV, CORE, END, NORM, block

_DEPTHS = {
    "tiny": (2, 4, 18, 1),
    "small": (2, 4, 32, 2),
}
_BLOCK = "blocks_{s}_{i}", "stage{next}.{i}"
_MIXER = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attns"
_DROP_PATHS = {
    "tiny": 0.2,
    "small": 0.4,
    "tiny_prepbn": 0.1,
    "small_prepbn": 0.3,
    "slab_tiny": 0.1,
    "slab_small": 0.3,
    "flatten_tiny": 0.2,
    "flatten_small": 0.4,
}


def _cswin(size: str, linear: str | None = None, **other: Any) -> Arguments:
    splits, softmax = (1, 2, 7, 7), "cross_shaped_window"
    kinds = (softmax,) * 4
    if linear:
        # The whole map of either stage at 224 pixels.
        splits, kinds = (56, 28, 7, 7), (linear, linear, softmax, softmax)
    stages = zip(kinds, splits, strict=True)
    stem = {"kernel_size": 7, "stride": 4, "padding": 2}
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": _DEPTHS[size],
        "dims": (64, 128, 256, 512),
        "num_heads": (2, 4, 8, 16),
        "norm": layer_norm(1e-5),
        "mixer": tuple({"name": kind, "split_size": size} for kind, size in stages),
        "stem": {"name": "conv_norm", **stem},
        "merge": {"name": "conv_norm", **merge},
        **other,
    }


def _presets(size: str) -> dict[str, Arguments]:
    norm = prepbn(120_000, 1e-5)
    linear = "cross_shaped_window_focused_linear"
    return {
        f"cswin_{size}": _cswin(size),
        f"cswin_{size}_prepbn": _cswin(size, norm=norm),
        f"slab_cswin_{size}": _cswin(size, "cross_shaped_window_sla", norm=norm),
        f"flatten_cswin_{size}": _cswin(size, linear),
    }


def _recipe(variant: str, drop_path: float) -> Recipe:
    averaged = 0.0 if variant.startswith("slab") or "prepbn" in variant else 0.99984
    recipe = Recipe(drop_path, batch_size=2048, ema_decay=averaged)
    if is_original(variant):
        return recipe._replace(final_lr_fraction=0.005)
    halved = {"batch_size": 1024} if "small" in variant else {}
    return recipe._replace(final_lr_fraction=0.02, **halved)


CSWIN = Family(
    name="cswin",
    presets={k: v for size in _DEPTHS for k, v in _presets(size).items()},
    layouts={
        "cswin": [
            ("stem/proj", "stage1_conv_embed.0", CONV),
            ("stem/norm", "stage1_conv_embed.2", NORM),
            ("merge_{s}/proj", "merge{s}.conv", CONV),
            ("merge_{s}/norm", "merge{s}.norm", NORM),
            *block(*_BLOCK, attention=""),
            (f"{_MIXER[0]}/whole", f"{_MIXER[1]}.0", CORE),
            (f"{_MIXER[0]}/vertical", f"{_MIXER[1]}.0", CORE),
            (f"{_MIXER[0]}/horizontal", f"{_MIXER[1]}.1", CORE),
            *END,
        ]
    },
    anchors=("stage1_conv_embed.0.weight",),
    classes=("head.weight",),
    epsilon=1e-5,
    preprocessing={"": Preprocessing(), "cswin_": Preprocessing(crop_ratio=0.9)},
    # Of SLAB less vectors in each block that nothing reads.
    figures={
        "cswin_tiny": Figures(20_393_320, None, 82.7),
        "cswin_tiny_prepbn": Figures(20_419_359),
        "slab_cswin_tiny": Figures(21_227_167, 4.324, 82.8),
        "flatten_cswin_tiny": Figures(21_201_768, 4.324, 83.1),
        "cswin_small": Figures(34_643_304, None, 83.6),
        "cswin_small_prepbn": Figures(34_685_757),
        "slab_cswin_small": Figures(35_493_565, 6.783),
        "flatten_cswin_small": Figures(35_451_752),
    },
    recipes={name: _recipe(name, rate) for name, rate in _DROP_PATHS.items()},
    config="imagenet_cswin.py:variant={variant}",
)
