"""iFormer (Si et al., 2022): convolution, maximum and attention side by side."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, LINEAR, NORM, POINTWISE

_SIZES: dict[str, tuple[Any, ...]] = {
    # depths, widths, heads of the layers that attend, by stage
    "small": (
        (3, 3, 9, 3),
        (96, 192, 320, 384),
        ((1,), (3,), (7,) * 4 + (9,) * 5, (11,)),
    ),
    "base": (
        (4, 6, 14, 6),
        (96, 192, 384, 512),
        ((1,), (3,), (8,) * 7 + (10,) * 7, (15,)),
    ),
    "large": (
        (4, 6, 18, 8),
        (96, 192, 448, 640),
        ((1,), (3,), (10,) * 9 + (12,) * 9, (19,)),
    ),
}
_RATES = {"small": 0.2, "base": 0.4, "large": 0.5}
_HEAD = 32
_BLOCK = "blocks_{s}_{i}", "blocks{next}.{i}"
_MIXER = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn"


def mixers(attention: Any, pool_sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Those of the layers of each stage."""
    return tuple(
        tuple(
            {"name": "inception", "attention_heads": heads, "pool_size": side}
            for heads in stage
        )
        for stage, side in zip(attention, pool_sizes, strict=True)
    )


def _iformer(size: str) -> Arguments:
    depths, dims, attention = _SIZES[size]
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": tuple(dim // _HEAD for dim in dims),
        "norm": layer_norm(1e-6),
        "embed_norm": {"name": "batch_norm"},
        "mixer": mixers(attention, (2, 2, 1, 1)),
        "stem": "conv_stack",
        "merge": {"name": "conv_norm", **merge},
        "pos_embed": (56, 28, 14, 7),
        "layer_scale": (None, None, 1e-6, 1e-6),
    }


IFORMER = Family(
    name="iformer",
    presets={f"iformer_{size}": _iformer(size) for size in _SIZES},
    layouts={
        "iformer": [
            (
                "",
                "",
                {f"pos_embed_{s}": (f"pos_embed{s + 1}", "batched") for s in range(4)},
            ),
            ("stem/conv_0", "patch_embed.proj1", CONV),
            ("stem/norm_0", "patch_embed.norm1", NORM),
            ("stem/conv_1", "patch_embed.proj2", CONV),
            ("stem/norm_1", "patch_embed.norm2", NORM),
            ("merge_{s}/proj", "patch_embed{next}.proj", CONV),
            ("merge_{s}/norm", "patch_embed{next}.norm", NORM),
            (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm1", NORM),
            (f"{_MIXER[0]}/conv_in", f"{_MIXER[1]}.high_mixer.conv1", POINTWISE),
            (f"{_MIXER[0]}/max_out", f"{_MIXER[1]}.high_mixer.proj2", POINTWISE),
            (
                _MIXER[0],
                _MIXER[1],
                {
                    "conv_kernel": ("high_mixer.proj1.weight", "depthwise"),
                    "fuse_kernel": ("conv_fuse.weight", "depthwise"),
                },
            ),
            (f"{_MIXER[0]}/qkv", f"{_MIXER[1]}.low_mixer.qkv", LINEAR),
            (f"{_MIXER[0]}/proj", f"{_MIXER[1]}.proj", POINTWISE),
            (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm2", NORM),
            (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp.fc1", LINEAR),
            (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp.fc2", LINEAR),
            (
                _BLOCK[0],
                _BLOCK[1],
                {
                    "mixer_layer_scale/scale": ("layer_scale_1", "same"),
                    "mlp_layer_scale/scale": ("layer_scale_2", "same"),
                },
            ),
            ("norm", "norm", NORM),
            ("head", "head", LINEAR),
        ]
    },
    anchors=("patch_embed.proj1.weight",),
    classes=("head.weight",),
    figures={
        "iformer_small": Figures(19_866_344, 4.826, 83.4),
        "iformer_base": Figures(47_866_216, 9.342, 84.6),
        "iformer_large": Figures(86_637_096, 14.004, 84.8),
    },
    preprocessing={"": Preprocessing(crop_ratio=0.9)},
    recipes={size: Recipe(drop_path=rate) for size, rate in _RATES.items()},
    config="finetune.py:{preset}",
)
