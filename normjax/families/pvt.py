"""PVT (Wang et al., 2021), with PRepBN, SLAB-PVT and FLatten-PVT."""

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
from normjax.families.layout import CONV, CORE, END, LINEAR, NORM, Q_KV, block

_DEPTHS = {
    "tiny": (2, 2, 2, 2),
    "small": (3, 4, 6, 3),
    "medium": (3, 4, 18, 3),
    "large": (3, 8, 27, 3),
}
_BLOCK = "blocks_{s}_{i}", "block{next}.{i}"
_MIXER = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn"
_RATES = {"tiny": 0.0, "small": 0.1, "medium": 0.3, "large": 0.3}
_DROP_PATHS = {
    **_RATES,
    "tiny": 0.1,
    **{f"{size}_prepbn": rate for size, rate in _RATES.items()},
    **{f"slab_{size}": rate for size, rate in _RATES.items()},
    **{f"flatten_{size}": rate for size, rate in _RATES.items()},
    "flatten_tiny": 0.1,
}
_BATCH_SIZES = {
    **{f"{kind}_{size}": 512 for kind in ("slab", "flatten") for size in _RATES},
    **{"slab_tiny": 1024, "flatten_tiny": 1024, "flatten_large": 256},
    "small_prepbn": 512,
}
"""Of variants that are trained with another one than 1024."""


def _pvt(size: str, linear: str | None = None, **other: Any) -> Arguments:
    ratios = (1, 1, 1, 1) if linear else (8, 4, 2, 1)
    mixer = linear or "spatial_reduction"
    return {
        "name": "pyramid",
        "depths": _DEPTHS[size],
        "dims": (64, 128, 320, 512),
        "num_heads": (1, 2, 5, 8),
        "mlp_ratio": (8.0, 8.0, 4.0, 4.0),
        "norm": layer_norm(1e-6),
        "embed_norm": layer_norm(1e-5),
        "mixer": tuple({"name": mixer, "sr_ratio": ratio} for ratio in ratios),
        "merge": {"name": "conv_norm", "kernel_size": 2, "stride": 2},
        "pos_embed": True,
        "placement": "pre_open",
        **other,
    }


def _original(size: str) -> Arguments:
    """The published model: a class token among the tokens of the last stage."""
    mixers = [*_pvt(size)["mixer"][:3], "softmax"]
    return _pvt(size, mixer=tuple(mixers), pool="cls", placement="pre")


def _presets(size: str) -> dict[str, Arguments]:
    norms = {"norm": prepbn(300_000, 1e-6), "embed_norm": None}
    return {
        f"pvt_{size}": _original(size),
        f"pvt_{size}_prepbn": _pvt(size, **norms),
        f"slab_pvt_{size}": _pvt(size, "spatial_reduction_sla", **norms),
        f"flatten_pvt_{size}": _pvt(size, "spatial_reduction_focused_linear"),
    }


def _recipe(variant: str, drop_path: float) -> Recipe:
    deep = "medium" in variant or "large" in variant
    recipe = Recipe(drop_path, warmup_epochs=5, clip_norm=1.0 if deep else 0.0)
    if is_original(variant):
        return recipe._replace(repeats=3)
    batch_size = _BATCH_SIZES.get(variant, 1024)
    return recipe._replace(batch_size=batch_size, final_lr_fraction=0.02)


PVT = Family(
    name="pvt",
    presets={k: v for size in _DEPTHS for k, v in _presets(size).items()},
    layouts={
        "pvt": [
            ("", "", {"cls_token": ("cls_token", "same")}),
            (
                "",
                "",
                {f"pos_embed_{s}": (f"pos_embed{s + 1}", "tokens") for s in range(4)},
            ),
            ("stem/proj", "patch_embed1.proj", CONV),
            ("stem/norm", "patch_embed1.norm", NORM),
            ("merge_{s}/proj", "patch_embed{next}.proj", CONV),
            ("merge_{s}/norm", "patch_embed{next}.norm", NORM),
            (f"{_MIXER[0]}/q", f"{_MIXER[1]}.q", LINEAR),
            (f"{_MIXER[0]}/kv", f"{_MIXER[1]}.kv", LINEAR),
            (f"{_MIXER[0]}/qkv", _MIXER[1], Q_KV),  # before the fused one of blocks
            (f"{_MIXER[0]}/sr", f"{_MIXER[1]}.sr", CONV),
            (f"{_MIXER[0]}/norm", f"{_MIXER[1]}.norm", NORM),
            *block(*_BLOCK),
            (*_MIXER, CORE),
            *END,
        ]
    },
    anchors=("patch_embed1.proj.weight",),
    classes=("head.weight",),
    preprocessing={"": Preprocessing()},
    optional={"cls_token": "the model averages its tokens"},
    # Of FLatten less a final norm that nothing reads.
    figures={
        "pvt_tiny": Figures(13_229_288, 1.933, 75.1),
        "pvt_tiny_prepbn": Figures(13_239_554, 1.926, 76.0),
        "slab_pvt_tiny": Figures(12_157_692, 2.036, 76.5),
        "flatten_pvt_tiny": Figures(12_149_480, 2.037, 77.8),
        "pvt_small": Figures(24_485_864, 3.816, 79.8),
        "pvt_small_prepbn": Figures(24_507_801, 3.806, 80.1),
        "slab_pvt_small": Figures(21_683_788, 4.028),
        "flatten_pvt_small": Figures(21_669_224),
        "pvt_medium": Figures(44_208_104, 6.659, 81.2),
        "pvt_medium_prepbn": Figures(44_253_117, 6.649, 81.7),
        "slab_pvt_medium": Figures(37_267_300, 7.034),
        "flatten_pvt_medium": Figures(37_241_192),
        "pvt_large": Figures(61_369_320, 9.814, 81.7),
        "pvt_large_prepbn": Figures(61_434_724),
        "slab_pvt_large": Figures(50_684_478),
        "flatten_pvt_large": Figures(50_648_168),
    },
    recipes={name: _recipe(name, rate) for name, rate in _DROP_PATHS.items()},
    config="imagenet_pvt.py:variant={variant}",
)
