"""T2T-ViT (Yuan et al., 2021): tokens of tokens, and a narrow and deep transformer."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import END, LINEAR, NORM, Kind, Row, block

_SIZES = {
    # width, depth, heads, ratio of the MLP
    "7": (256, 7, 4, 2.0),
    "10": (256, 10, 4, 2.0),
    "12": (256, 12, 4, 2.0),
    "14": (384, 14, 6, 3.0),
    "19": (448, 19, 7, 3.0),
    "24": (512, 24, 8, 3.0),
    "14_resnext": (384, 14, 32, 3.0),
    "14_wide": (768, 4, 12, 3.0),
}
_BLOCK = "blocks_{i}", "blocks.{i}"
_TOKENS = "stem/attention{i}", "tokens_to_token.attention{i}"


def _t2t(size: str, layer: str = "performer", **other: Any) -> Arguments:
    dim, depth, num_heads, mlp_ratio = _SIZES[size]
    return {
        "name": "vit",
        "dim": dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "norm": layer_norm(1e-5),
        "mixer": {"name": "softmax", "qkv_bias": False},
        "stem": {"name": "tokens_to_token", "layer": layer},
        "pool": "cls",
        "positions": "stored_sine",
        **other,
    }


def _layout(layer: list[Row]) -> list[Row]:
    """Rows of a state dict; those of the token layers differ."""
    table: Kind = {
        "cls_token": ("cls_token", "same"),
        "pos_embed": ("pos_embed", "same"),
    }
    return [
        ("", "", table),
        *((f"{_TOKENS[0]}{ours}", f"{_TOKENS[1]}{t}", kind) for ours, t, kind in layer),
        (f"{_TOKENS[0]}/norm1", f"{_TOKENS[1]}.norm1", NORM),
        (f"{_TOKENS[0]}/norm2", f"{_TOKENS[1]}.norm2", NORM),
        ("stem/project", "tokens_to_token.project", LINEAR),
        *block(*_BLOCK),
        *END,
    ]


_NAMES = [*_SIZES]
_TRANSFORMERS = ("14", "19", "24")

T2T_VIT = Family(
    name="t2t_vit",
    presets={
        **{f"t2t_vit_{size}": _t2t(size) for size in _NAMES},
        **{f"t2t_vit_t_{size}": _t2t(size, "transformer") for size in _TRANSFORMERS},
    },
    layouts={
        "t2t_vit": _layout(
            [
                ("", "", {"features": ("w", "same")}),
                ("/kqv", ".kqv", LINEAR),
                ("/proj", ".proj", LINEAR),
                ("/fc1", ".mlp.0", LINEAR),
                ("/fc2", ".mlp.2", LINEAR),
            ]
        ),
        "t2t_vit_t": _layout(
            [
                ("/qkv", ".attn.qkv", LINEAR),
                ("/proj", ".attn.proj", LINEAR),
                ("/fc1", ".mlp.fc1", LINEAR),
                ("/fc2", ".mlp.fc2", LINEAR),
            ]
        ),
    },
    anchors=("tokens_to_token.project.weight",),
    patches={
        "tokens_to_token.attention1.kqv.weight": (49,),
        "tokens_to_token.attention1.attn.qkv.weight": (49,),
    },
    classes=("head.weight",),
    # The table of positions and what performers draw are not trained.
    figures={
        "t2t_vit_7": Figures(4_255_694, 1.147, 71.7),
        "t2t_vit_10": Figures(5_834_702, 1.516, 75.2),
        "t2t_vit_12": Figures(6_887_374, 1.763, 76.5),
        "t2t_vit_14": Figures(21_465_806, 4.783, 81.5),
        "t2t_vit_19": Figures(39_085_070, 8.480, 81.9),
        "t2t_vit_24": Figures(64_000_974, 13.662, 82.3),
        "t2t_vit_t_14": Figures(21_465_422, 6.089, 81.7),
        "t2t_vit_t_19": Figures(39_084_686, 9.785, 82.4),
        "t2t_vit_t_24": Figures(64_000_590, 14.967, 82.6),
        "t2t_vit_14_resnext": Figures(21_465_806),
        "t2t_vit_14_wide": Figures(25_000_910),
    },
    epsilon=1e-5,
    preprocessing={"": Preprocessing(crop_ratio=0.9)},
    recipes={
        name: Recipe(drop_path=0.1, ema_decay=0.99996)
        for name in (*_NAMES, *(f"t_{size}" for size in _TRANSFORMERS))
    },
    config="finetune.py:{preset}",
)
