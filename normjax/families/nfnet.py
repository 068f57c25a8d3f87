"""NFNet (Brock et al., 2021), and its light variants of timm."""

from typing import Any

from normjax.families.base import Arguments, Family, Figures, Preprocessing, Recipe
from normjax.families.layout import LINEAR, POINTWISE, Kind, Row

_DROPOUTS = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5)
_SILU_GAIN = 1.7881293296813965
_LIGHT: Arguments = {
    "bottleneck_ratio": 0.25,
    "group_width": 64,
    "attention": "efficient_channel",
    "activation": "silu",
    "weight_gain": _SILU_GAIN,  # in the weights, where F0 to F6 have it behind gelu
    "same_padding": False,
    "skip_init": False,
}
_SQUEEZED = {"attention": "squeeze_excitation", "attention_ratio": 0.25}


def _nfnet(times: int, **other: Any) -> Arguments:
    """All sizes are multiples of the blocks of the first one."""
    depths = tuple(times * depth for depth in (1, 2, 6, 3))
    return {"name": "nfnet", "depths": depths, "norm": {"name": "none"}, **other}


_CONV: Kind = {
    "kernel": ("weight", "conv"),
    "bias": ("bias", "same"),
    "gain": ("gain", "gains"),
}
_BLOCK = "blocks_{s}_{i}", "stages.{s}.{i}"
_PARTS = {f"conv{n}": f"conv{n}" for n in ("1", "2", "2b", "3")}
_PARTS["shortcut"] = "downsample.conv"
_LAYOUT: list[Row] = [
    *((f"stem_conv{n}", f"stem.conv{n}", _CONV) for n in range(1, 5)),
    *(
        (f"{_BLOCK[0]}/{ours}", f"{_BLOCK[1]}.{theirs}", _CONV)
        for ours, theirs in _PARTS.items()
    ),
    (*_BLOCK, {"gain": ("skipinit_gain", "same")}),
    (f"{_BLOCK[0]}/attention/fc1", f"{_BLOCK[1]}.attn_last.fc1", POINTWISE),
    (f"{_BLOCK[0]}/attention/fc2", f"{_BLOCK[1]}.attn_last.fc2", POINTWISE),
    (
        f"{_BLOCK[0]}/attention",
        f"{_BLOCK[1]}.attn_last.conv",
        {"kernel": ("weight", "vector")},
    ),
    ("last", "final_conv", _CONV),
    ("head", "head.fc", LINEAR),
]

NFNET = Family(
    name="nfnet",
    presets={
        **{
            f"dm_nfnet_f{n}": _nfnet(n + 1, dropout_rate=rate)
            for n, rate in enumerate(_DROPOUTS)
        },
        "nfnet_l0": _nfnet(1, last_width=2304, **{**_LIGHT, **_SQUEEZED}),
        "eca_nfnet_l0": _nfnet(1, last_width=2304, **_LIGHT),
        "eca_nfnet_l1": _nfnet(2, **_LIGHT),
        "eca_nfnet_l2": _nfnet(3, **_LIGHT),
    },
    layouts={"nfnet_timm": _LAYOUT},
    anchors=("stem.conv1.weight",),
    classes=("head.fc.weight",),
    preprocessing={
        "": Preprocessing(288, 1.0),
        "dm_nfnet_f0": Preprocessing(256, 0.9),
        "dm_nfnet_f1": Preprocessing(320, 0.91),
        "dm_nfnet_f2": Preprocessing(352, 0.92),
        "dm_nfnet_f3": Preprocessing(416, 0.94),
        "dm_nfnet_f4": Preprocessing(512, 0.951),
        "dm_nfnet_f5": Preprocessing(544, 0.954),
        "dm_nfnet_f6": Preprocessing(576, 0.956),
        "eca_nfnet_l1": Preprocessing(320, 1.0),
        "eca_nfnet_l2": Preprocessing(384, 1.0),
    },
    figures={
        "dm_nfnet_f0": Figures(71_489_284, 12.384, 83.47, "timm", 256),
        "dm_nfnet_f1": Figures(132_634_256, 35.539, 84.70, "timm", 320),
        "dm_nfnet_f2": Figures(193_779_228, 62.593, 85.18, "timm", 352),
        "dm_nfnet_f3": Figures(254_924_200, 114.764, 85.68, "timm", 416),
        "dm_nfnet_f4": Figures(316_069_172, 215.241, 85.84, "timm", 512),
        "dm_nfnet_f5": Figures(377_214_144, 289.757, 86.10, "timm", 544),
        "dm_nfnet_f6": Figures(438_359_116, 377.280, 86.36, "timm", 576),
        "nfnet_l0": Figures(35_074_488, 7.025, 82.77, "timm", 288),
        "eca_nfnet_l0": Figures(24_143_924, 7.014, 82.59, "timm", 288),
        "eca_nfnet_l1": Figures(41_407_728, 14.730, 84.06, "timm", 320),
        "eca_nfnet_l2": Figures(56_722_348, 29.782, 84.71, "timm", 384),
    },
    # The published rate of block i of n is 0.1 i / n, i from 0.
    recipes={f"dm_f{n}": Recipe(0.1 * (1 - 1 / (12 * (n + 1)))) for n in range(7)},
    config="finetune.py:{preset}",
)
