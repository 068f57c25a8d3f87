"""iLLaMA (Wang et al., 2024): the decoder of LLaMA as a vision transformer."""

from typing import Any

from normjax.families.base import Arguments, Family, Figures, Preprocessing
from normjax.families.layout import CONV, END, LINEAR, NORM, Kind

_EPSILON = 1e-6
_SIZES = {
    # layers, width, heads, width inside the MLP, parameters, top-1
    "tiny": (12, 192, 3, 512, 5_701_096, 75.0),
    "small": (12, 384, 6, 1024, 22_018_024, 79.9),
    "base": (12, 768, 12, 2048, 86_502_376, 81.6),
    "large": (24, 1024, 16, 2816, 310_445_032, 84.8),
}
_BLOCK = "blocks_{i}", "blocks.{i}"


def _illama(size: str) -> Arguments:
    depth, dim, heads, hidden, *_ = _SIZES[size]
    return {
        "name": "vit",
        "dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden / dim,
        "mlp": {"name": "swiglu", "keep_size": False},
        "mixer": "soft_causal",
        "norm": {"name": "rms_norm", "epsilon": _EPSILON},
        "pool": "last",
    }


def _figures(size: str) -> Figures:
    *_, parameters, top_1 = _SIZES[size]
    source = "authors, ImageNet-21k before" if size == "large" else "authors"
    return Figures(parameters, top_1=top_1, source=source)


def _tokens(model: Any, stage: int) -> Kind:
    """The token behind the image, and its place in the table."""
    del stage
    if model.pool != "last":
        return {}
    return {
        "cls_token": ("cls_token", "same"),
        "pos_embed": ("pos_embed", "tokens_last"),
    }


_GATED: Kind = {"kernel": (("fc1.weight", "fc3.weight"), ("joined_weight", 2))}

ILLAMA = Family(
    name="illama",
    presets={f"illama_{size}": _illama(size) for size in _SIZES},
    layouts={
        "illama": [
            ("", "", _tokens),
            ("stem/proj", "patch_embed.proj", CONV),
            (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm1", NORM),
            (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm2", NORM),
            (f"{_BLOCK[0]}/mixer/qkv", f"{_BLOCK[1]}.attn.qkv", LINEAR),
            (f"{_BLOCK[0]}/mixer/proj", f"{_BLOCK[1]}.attn.proj", LINEAR),
            (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp", _GATED),
            (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp.fc2", LINEAR),
            *END,
        ]
    },
    anchors=("patch_embed.proj.weight",),
    classes=("head.weight",),
    epsilon=_EPSILON,
    figures={f"illama_{size}": _figures(size) for size in _SIZES},
    preprocessing={"": Preprocessing()},
    config="finetune.py:{preset}",
)
