"""DeiT (Touvron et al., 2021), with PRepBN, and SLAB-DeiT (Guo et al., 2024)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    is_original,
    prepbn,
)
from normjax.families.layout import CONV, CORE, END, LINEAR, Kind, block

_SLAB = {"norm": {"name": "prepbn", "decay_steps": 60_000}, "mixer": "sla"}
_BLOCK = "blocks_{i}", "blocks.{i}"
_DROP_PATHS = {
    "tiny": 0.1,
    "small": 0.1,
    "base": 0.1,
    "tiny_distilled": 0.1,
    "small_distilled": 0.1,
    "base_distilled": 0.1,
    "tiny_prepbn": 0.0,
    "small_prepbn": 0.0,
    "slab_tiny": 0.0,
    "slab_small": 0.0,
}


def _deit(dim: int, num_heads: int, **other: Any) -> Arguments:
    geometry = {"depth": 12, "dim": dim, "num_heads": num_heads, "mlp_ratio": 4.0}
    return {"name": "vit", **geometry, **other}


def _recipe(variant: str, drop_path: float) -> Recipe:
    if is_original(variant):
        return Recipe(drop_path, warmup_epochs=5, repeats=3)
    return Recipe(drop_path, clip_norm=5.0)


def _tokens(model: Any, stage: int) -> Kind:
    """Tokens beside the image; behind it iLLaMA has them."""
    del stage
    if model.pool == "last":
        return {}
    return {
        "cls_token": ("cls_token", "same"),
        "dist_token": ("dist_token", "same"),
        "pos_embed": ("pos_embed", "tokens"),
    }


DEIT = Family(
    name="deit",
    presets={
        "deit_tiny": _deit(192, 3, pool="cls"),
        "deit_small": _deit(384, 6, pool="cls"),
        "deit_base": _deit(768, 12, pool="cls"),
        "deit_tiny_distilled": _deit(192, 3, pool="distilled"),
        "deit_small_distilled": _deit(384, 6, pool="distilled"),
        "deit_base_distilled": _deit(768, 12, pool="distilled"),
        "deit_tiny_prepbn": _deit(192, 3, pool="cls", norm=prepbn(300_000, 1e-6)),
        "deit_small_prepbn": _deit(384, 6, pool="cls", norm=prepbn(300_000, 1e-6)),
        "slab_deit_tiny": _deit(192, 3, pool="mean", **_SLAB),
        "slab_deit_small": _deit(384, 6, pool="mean", **_SLAB),
    },
    layouts={
        "deit": [
            ("", "", _tokens),
            ("stem/proj", "patch_embed.proj", CONV),
            *block(*_BLOCK),
            (f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn", CORE),
            *END,
            ("head_dist", "head_dist", LINEAR),
        ]
    },
    anchors=("patch_embed.proj.weight",),
    classes=("head.weight",),
    preprocessing={"": Preprocessing()},
    optional={
        "dist_token": "the model has no distillation token",
        r"head_dist\.(weight|bias)": "the model has no head of distillation",
        "cls_token": "the model averages its tokens",
    },
    # Of SLAB less a class token that nothing reads.
    figures={
        "deit_tiny": Figures(5_717_416, 1.254, 72.2),
        "deit_small": Figures(22_050_664, 4.599, 79.8),
        "deit_base": Figures(86_567_656, None, 81.8),
        "deit_tiny_prepbn": Figures(5_727_041, 1.254, 73.6),
        "deit_small_prepbn": Figures(22_069_889, 4.599, 80.2),
        "slab_deit_tiny": Figures(6_198_209, 1.139, 74.3),
        "slab_deit_small": Figures(22_992_257, 4.359, 80.0),
    },
    recipes={name: _recipe(name, rate) for name, rate in _DROP_PATHS.items()},
    config="imagenet_deit.py:variant={variant}",
)
