"""RAVLT (Fan et al., 2025): rank-augmented linear attention, then softmax."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, DWC, NORM, POINTWISE

_SIZES: dict[str, tuple[Any, ...]] = {
    # depths, widths, heads, layer scales
    "t": ((2, 2, 6, 2), (64, 128, 256, 512), (1, 2, 4, 8), 1.0),
    "s": ((3, 5, 9, 3), (64, 128, 320, 512), (1, 2, 5, 8), 1.0),
    "b": ((4, 6, 12, 6), (96, 192, 384, 512), (1, 2, 6, 8), (1.0, 1.0, 1e-6, 1e-6)),
    "l": ((4, 7, 19, 8), (96, 192, 448, 640), (1, 2, 7, 10), 1e-6),
}
_RATES = {"t": 0.1, "s": 0.15, "b": 0.4, "l": 0.55}
_BLOCK = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"
_MIXER = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn"
_LEPE = {"lepe_kernel": ("weight", "depthwise"), "lepe_bias": ("bias", "same")}


def _ravlt(size: str) -> Arguments:
    depths, dims, num_heads, scale = _SIZES[size]
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": num_heads,
        "mlp_ratio": 3.5,
        "norm": layer_norm(1e-6),
        "embed_norm": {"name": "batch_norm"},
        "mixer": ("rala", "rala", "rala_softmax", "rala_softmax"),
        "mlp": "residual_depthwise_mlp",
        "stem": {"name": "conv_stack", "strides": (2, 1, 1, 2)},
        "merge": {"name": "conv_norm", **merge},
        "position_conv": ("mixer",),
        "layer_scale": scale,
        "last_width": 1024,
        "placement": "pre_open",
    }


RAVLT = Family(
    name="ravlt",
    presets={f"ravlt_{size}": _ravlt(size) for size in _SIZES},
    layouts={
        "ravlt": [
            *((f"stem/conv_{i}", f"patch_embed.proj.{3 * i}", CONV) for i in range(4)),
            *(
                (f"stem/norm_{i}", f"patch_embed.proj.{3 * i + 1}", NORM)
                for i in range(4)
            ),
            ("merge_{s}/proj", "layers.{last}.downsample.reduction", CONV),
            ("merge_{s}/norm", "layers.{last}.downsample.norm", NORM),
            (f"{_BLOCK[0]}/position_mixer", f"{_BLOCK[1]}.pos", DWC),
            (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm1.norm", NORM),
            (f"{_MIXER[0]}/qkvo", f"{_MIXER[1]}.qkvo", POINTWISE),
            (_MIXER[0], f"{_MIXER[1]}.lepe", _LEPE),
            (f"{_MIXER[0]}/proj", f"{_MIXER[1]}.proj", POINTWISE),
            (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm2.norm", NORM),
            (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.ffn.fc1", POINTWISE),
            (f"{_BLOCK[0]}/mlp", f"{_BLOCK[1]}.ffn.dwconv", DWC),
            (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.ffn.fc2", POINTWISE),
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
            ("head", "head", POINTWISE),
        ]
    },
    anchors=("patch_embed.proj.0.weight",),
    classes=("head.weight",),
    figures={
        "ravlt_t": Figures(14_897_768, 2.613),
        "ravlt_s": Figures(25_591_208, 4.878, 84.4),
        "ravlt_b": Figures(48_241_288, 10.580),
        "ravlt_l": Figures(95_242_440, 17.209),
    },
    preprocessing={"": Preprocessing()},
    recipes={size: Recipe(drop_path=rate) for size, rate in _RATES.items()},
    config="finetune.py:{preset}",
)
