"""STViT (Huang et al., 2023): attention between super tokens."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, DWC, LINEAR, NORM, POINTWISE, Kind

_SIZES: dict[str, tuple[Any, ...]] = {
    # depths, widths, heads, layer scale of the last two stages
    "small": ((3, 5, 9, 3), (64, 128, 320, 512), (1, 2, 5, 8), None),
    "base": ((4, 6, 14, 6), (96, 192, 384, 512), (2, 3, 6, 8), 1e-6),
    "large": ((4, 7, 19, 8), (96, 192, 448, 640), (2, 3, 7, 10), 1e-6),
}
_RATES = {"small": 0.1, "base": 0.4, "large": 0.6}
_BLOCK = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"
_REFINE = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn.stoken_refine"


def _stvit(size: str) -> Arguments:
    depths, dims, num_heads, scale = _SIZES[size]
    dim = dims[0]
    stem = {"strides": (2, 1, 2, 1), "hidden": (dim // 2, dim // 2, dim)}
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": num_heads,
        "norm": layer_norm(1e-6),
        "mlp_norm": {"name": "batch_norm"},
        "embed_norm": {"name": "batch_norm"},
        "mixer": tuple({"name": "super_token", "token_size": n} for n in (8, 4, 1, 1)),
        "mlp": "residual_depthwise_mlp",
        "stem": {"name": "conv_stack", "activation_first": True, **stem},
        "merge": {"name": "conv_norm", **merge},
        "position_conv": ("mixer",),
        "layer_scale": (None, None, scale, scale),
        "last_width": 1024,
        "placement": "pre_open",
    }


def _qkv(model: Any, stage: int) -> Kind:
    """Queries, keys and values of a head stand together there."""
    heads = getattr(model, "num_heads", None)
    if not isinstance(heads, tuple) or stage >= len(heads):
        return {}  # of another host
    parts = heads[stage], 3
    return {
        "kernel": ("weight", ("by_head_pointwise", *parts)),
        "bias": ("bias", ("by_head_bias", *parts)),
    }


STVIT = Family(
    name="stvit",
    presets={f"stvit_{size}": _stvit(size) for size in _SIZES},
    layouts={
        "stvit": [
            *((f"stem/conv_{i}", f"patch_embed.proj.{3 * i}", CONV) for i in range(4)),
            *(
                (f"stem/norm_{i}", f"patch_embed.proj.{3 * i + 2}", NORM)
                for i in range(4)
            ),
            ("merge_{s}/proj", "layers.{last}.downsample.proj.0", CONV),
            ("merge_{s}/norm", "layers.{last}.downsample.proj.1", NORM),
            (f"{_BLOCK[0]}/position_mixer", f"{_BLOCK[1]}.pos_embed.conv", DWC),
            (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm1.norm", NORM),
            (f"{_REFINE[0]}/qkv", f"{_REFINE[1]}.qkv", _qkv),
            (f"{_REFINE[0]}/proj", f"{_REFINE[1]}.proj", POINTWISE),
            (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm2", NORM),
            (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp2.fc1", POINTWISE),
            (f"{_BLOCK[0]}/mlp", f"{_BLOCK[1]}.mlp2.conv.conv", DWC),
            (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp2.fc2", POINTWISE),
            (
                _BLOCK[0],
                _BLOCK[1],
                {
                    "mixer_layer_scale/scale": ("gamma_1", "channels"),
                    "mlp_layer_scale/scale": ("gamma_2", "channels"),
                },
            ),
            ("last/conv", "proj", CONV),
            ("last/norm", "norm", NORM),
            ("head", "head", LINEAR),
        ]
    },
    anchors=("patch_embed.proj.0.weight",),
    classes=("head.weight",),
    # Without the identities that the released code counts as parameters.
    figures={
        "stvit_small": Figures(25_495_624, 4.350, 83.6),
        "stvit_base": Figures(51_691_288, 9.842, 84.8),
        "stvit_large": Figures(94_971_096, 15.561, 85.3),
    },
    preprocessing={"": Preprocessing()},
    recipes={size: Recipe(drop_path=rate) for size, rate in _RATES.items()},
    config="finetune.py:{preset}",
)
