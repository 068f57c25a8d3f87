"""EfficientMod (Ma et al., 2024)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, LINEAR, NORM, Beside, Row

_SIZES: dict[str, tuple[Any, ...]] = {
    # layers that modulate and that attend, widths, expansions of the former in turn,
    # MLP ratios of the latter, drop path
    "xxs": ((2, 2, 6, 2), (0, 0, 1, 2), (32, 64, 128, 256), (1, 6), (4, 4), 0.0),
    "xs": ((3, 3, 4, 2), (0, 0, 3, 3), (32, 64, 144, 288), (1, 4), (4, 4), 0.0),
    "s": ((4, 4, 8, 4), (0, 0, 4, 4), (32, 64, 144, 312), (1, 6), (4, 5), 0.02),
    "s_conv": ((4, 4, 12, 8), (0, 0, 0, 0), (40, 80, 160, 344), (1, 6), (4, 4), 0.02),
}
_HEADS, _NARROWEST = 8, 32


def efficientmod(
    modulations: tuple[int, ...],
    attentions: tuple[int, ...],
    dims: tuple[int, ...],
    expansions: tuple[int, ...],
    mlp_ratio: tuple[float, ...],
    *,
    num_heads: int = _HEADS,
    narrowest_head: int = _NARROWEST,
    kernel_size: int = 7,
) -> Arguments:
    """A pyramid whose stages modulate first and attend then.

    Args:
      modulations, attentions: layers of each kind, by stage.
      dims: widths.  expansions: of the modulating layers in turn.
      mlp_ratio: of the attending layers, by stage.
      num_heads, narrowest_head: of the attending layers; heads are wider than C /
        num_heads where that is narrow.
      kernel_size: of the context.
    """
    mixers, mlps, scales = [], [], []
    for modulating, attending, dim in zip(modulations, attentions, dims, strict=True):
        width = num_heads * max(dim // num_heads, narrowest_head)
        attention = {"name": "whole_map", "qkv_features": width, "qkv_bias": False}
        modulation = [
            {
                "name": "efficient_modulation",
                "expansion": expansions[i % len(expansions)],
                "kernel_sizes": (kernel_size,),
            }
            for i in range(modulating)
        ]
        mixers.append((*modulation, *[attention] * attending))
        mlps.append((*[None] * modulating, *["mlp"] * attending))
        scales.append((*[1e-4] * modulating, *[None] * attending))
    stem = {"name": "conv_norm", "kernel_size": 7, "stride": 4, "padding": 3}
    merge = {"name": "conv_norm", "kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": tuple(map(len, mixers)),
        "dims": dims,
        "num_heads": (num_heads,) * len(dims),
        "mlp_ratio": mlp_ratio,
        "norm": layer_norm(1e-5),
        "mixer": tuple(mixers),
        "mlp": tuple(mlps),
        "layer_scale": tuple(scales),
        "stem": stem,
        "merge": merge,
    }


def _size(size: str) -> Arguments:
    modulations, attentions, dims, expansions, ratios, _ = _SIZES[size]
    # The first two stages do not attend.
    return efficientmod(modulations, attentions, dims, expansions, (4, 4, *ratios))


_BLOCK = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"
_CONTEXT = f"{_BLOCK[1]}.mlp.context_layer"
_LAYOUT: list[Row] = [
    ("stem/proj", "patch_embed.proj", CONV),
    ("stem/norm", "patch_embed.norm", NORM),
    # A merge belongs to the stage before it.
    ("merge_{s}/proj", "layers.{last}.downsample.proj", CONV),
    ("merge_{s}/norm", "layers.{last}.downsample.norm", NORM),
    (_BLOCK[0], _BLOCK[1], {"mixer_layer_scale/scale": ("gamma_1", "same")}),
    (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm", Beside("mixer/fc1/kernel", NORM)),
    (f"{_BLOCK[0]}/mixer/fc1", f"{_BLOCK[1]}.mlp.fc1", LINEAR),
    (f"{_BLOCK[0]}/mixer/fc2", f"{_BLOCK[1]}.mlp.fc2", LINEAR),
    (f"{_BLOCK[0]}/mixer/context_in", f"{_CONTEXT}.f", LINEAR),
    (f"{_BLOCK[0]}/mixer/context_out", f"{_CONTEXT}.g", LINEAR),
    (
        f"{_BLOCK[0]}/mixer",
        f"{_CONTEXT}.context_list.0",
        {
            "context_0_kernel": ("weight", "depthwise"),
            "context_0_bias": ("bias", "same"),
        },
    ),
    (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm1", NORM),
    (f"{_BLOCK[0]}/mixer/qkv", f"{_BLOCK[1]}.attn.qkv", LINEAR),
    (f"{_BLOCK[0]}/mixer/proj", f"{_BLOCK[1]}.attn.proj", LINEAR),
    (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm2", NORM),
    (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp.fc1", LINEAR),
    (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp.fc2", LINEAR),
    ("norm", "norm", NORM),
    ("head", "head", LINEAR),
]

EFFICIENTMOD = Family(
    name="efficientmod",
    presets={f"efficientmod_{size}": _size(size) for size in _SIZES},
    layouts={"efficientmod": _LAYOUT},
    anchors=("patch_embed.proj.weight",),
    classes=("head.weight",),
    epsilon=1e-5,
    preprocessing={"": Preprocessing()},
    figures={
        "efficientmod_xxs": Figures(4_736_264, 0.579, 77.1, "authors, distilled"),
        "efficientmod_xs": Figures(6_627_544, 0.773, 79.4, "authors, distilled"),
        "efficientmod_s": Figures(12_897_184, 1.402, 81.9, "authors, distilled"),
        "efficientmod_s_conv": Figures(12_872_336, 1.471, 80.5),
    },
    recipes={size: Recipe(rate) for size, (*_, rate) in _SIZES.items()},
    config="finetune.py:{preset}",
)
