"""TransNeXt (Shi, 2024)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, DWC, LINEAR, NORM, POINTWISE, Kind, Row

_SIZES: dict[str, tuple[Any, ...]] = {
    # depths, width and heads of the first stage, drop path
    "micro": ((2, 2, 15, 2), 48, 2, 0.15),
    "tiny": ((2, 2, 15, 2), 72, 3, 0.25),
    "small": ((5, 5, 22, 5), 72, 3, 0.45),
    "base": ((5, 5, 23, 5), 96, 4, 0.6),
}


def transnext_mixers(
    sr_ratios: tuple[int, ...],
    trained: tuple[int, ...],
    pool_size: int | None = None,
    window_size: tuple[int | None, ...] = (3, 3, 3, None),
) -> tuple[Arguments, ...]:
    """The mixer of each stage.

    Args:
      sr_ratios: by which the pooled map is smaller.
      trained: sides of the maps at which the weights were trained.
      pool_size: side of all pooled maps, whatever the image.
      window_size: None for a stage that attends to the whole map.
    """
    mixers = []
    for ratio, side, window in zip(sr_ratios, trained, window_size, strict=True):
        spec: Arguments = {"name": "global_cosine", "trained_grid": (side, side)}
        if window is not None:
            spec |= {"name": "aggregated", "sr_ratio": ratio, "window_size": window}
            spec["pool_size"] = pool_size if ratio > 1 else None
        mixers.append(spec)
    return tuple(mixers)


def _transnext(size: str, **mixing: Any) -> Arguments:
    depths, dim, heads, _ = _SIZES[size]
    stem = {"name": "conv_norm", "kernel_size": 7, "stride": 4, "padding": 3}
    merge = {"name": "conv_norm", "kernel_size": 3, "stride": 2, "padding": 1}
    mixing = {"sr_ratios": (8, 4, 2, 1), "trained": (56, 28, 14, 7), **mixing}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": tuple(dim << i for i in range(4)),
        "num_heads": tuple(heads << i for i in range(4)),
        "mlp_ratio": (8.0, 8.0, 4.0, 4.0),
        "mlp": "conv_glu",
        "norm": layer_norm(1e-6),
        "embed_norm": layer_norm(1e-5),
        "mixer": transnext_mixers(**mixing),
        "stem": stem,
        "merge": merge,
        "stage_norm": True,
    }


_BLOCK = "blocks_{s}_{i}", "block{next}.{i}"
_MIXER = f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn"
_LEARNED: Kind = {
    "temperature": ("temperature", "heads"),
    "query_embedding": ("query_embedding", "heads"),
    "local_bias": ("relative_pos_bias_local", "same"),
    "learnable_tokens": ("learnable_tokens", "same"),
    "learnable_bias": ("learnable_bias", "heads"),
}
_LAYOUT: list[Row] = [
    ("stem/proj", "patch_embed1.proj", CONV),
    ("stem/norm", "patch_embed1.norm", NORM),
    ("merge_{s}/proj", "patch_embed{next}.proj", CONV),
    ("merge_{s}/norm", "patch_embed{next}.norm", NORM),
    (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.norm1", NORM),
    (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.norm2", NORM),
    (*_MIXER, _LEARNED),
    *((f"{_MIXER[0]}/{n}", f"{_MIXER[1]}.{n}", LINEAR) for n in ("q", "kv", "qkv")),
    (f"{_MIXER[0]}/proj", f"{_MIXER[1]}.proj", LINEAR),
    (f"{_MIXER[0]}/sr", f"{_MIXER[1]}.sr", POINTWISE),
    (f"{_MIXER[0]}/norm", f"{_MIXER[1]}.norm", NORM),
    (f"{_MIXER[0]}/position_fc1", f"{_MIXER[1]}.cpb_fc1", LINEAR),
    (f"{_MIXER[0]}/position_fc2", f"{_MIXER[1]}.cpb_fc2", LINEAR),
    (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp.fc1", LINEAR),
    (f"{_BLOCK[0]}/mlp", f"{_BLOCK[1]}.mlp.dwconv.dwconv", DWC),
    (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp.fc2", LINEAR),
    ("norm_{s}", "norm{next}", NORM),
    ("norm", "norm4", NORM),
    ("head", "head", LINEAR),
]

TRANSNEXT = Family(
    name="transnext",
    presets={
        **{f"transnext_{size}": _transnext(size) for size in _SIZES},
        "transnext_micro_aaaa": _transnext(
            "micro",
            sr_ratios=(16, 8, 4, 2),
            trained=(64, 32, 16, 8),
            window_size=(3, 3, 3, 3),
        ),
    },
    layouts={"transnext": _LAYOUT},
    anchors=("patch_embed1.proj.weight",),
    classes=("head.weight",),
    preprocessing={
        "": Preprocessing(),
        "transnext_micro_aaaa": Preprocessing(image_size=256),
    },
    figures={
        "transnext_micro": Figures(12_809_304, 2.649, 82.5),
        "transnext_tiny": Figures(28_258_960, 5.711, 84.0),
        "transnext_small": Figures(49_741_564, 10.291, 84.7),
        "transnext_base": Figures(89_721_496, 18.300, 84.8),
        "transnext_micro_aaaa": Figures(13_114_008, 3.326, 82.6, image_size=256),
    },
    recipes={
        **{size: Recipe(rate, clip_norm=1.0) for size, (*_, rate) in _SIZES.items()},
        "micro_aaaa": Recipe(0.15, clip_norm=1.0),
    },
    config="finetune.py:{preset}",
)
