"""MS-MLP (Zheng et al., 2022)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import END, LINEAR, NORM, Kind, conv_merge, depthwise

_SIZES: dict[str, tuple[Any, ...]] = {
    # width of the first stage, depths, drop path
    "t": (96, (3, 3, 9, 3), 0.1),
    "s": (96, (3, 3, 27, 3), 0.4),
    "b": (128, (3, 3, 27, 3), 0.5),
}
_KERNELS = ((1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7))
_BLOCK = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"
_MIXER = f"{_BLOCK[0]}/mixer"
_CHUNKS: Kind = {
    ours: place
    for i in range(5)
    for name, axis in (("rows", "lr"), ("columns", "td"))
    for ours, place in depthwise(f"{name}_{i}", f"dwconv_{axis}.{i}").items()
}


def _ms_mlp(size: str) -> Arguments:
    dim, depths, _ = _SIZES[size]
    mixers = ({"name": "mix_shift", "kernel_sizes": sizes} for sizes in _KERNELS)
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": tuple(dim << i for i in range(4)),
        "num_heads": (1, 1, 1, 1),
        "norm": layer_norm(1e-6),
        "mixer": tuple(mixers),
        "mlp": (None, None, None, None),
        "branches": {"name": "transformer", "mixer_norm": "none"},
        "layer_scale": 1e-6,
        "merge": {"name": "conv_norm", "kernel_size": 2, "stride": 2},
        "pool": "mean_first",
    }


MS_MLP = Family(
    name="ms_mlp",
    presets={f"ms_mlp_{size}": _ms_mlp(size) for size in _SIZES},
    layouts={
        "ms_mlp": [
            *conv_merge("stem", "patch_embed"),
            *conv_merge("merge_{s}", "layers.{last}.downsample"),
            (_BLOCK[0], _BLOCK[1], {"mixer_layer_scale/scale": ("gamma", "same")}),
            (_MIXER, _BLOCK[1], _CHUNKS),
            (f"{_MIXER}/norm", f"{_BLOCK[1]}.norm", NORM),
            (f"{_MIXER}/fc1", f"{_BLOCK[1]}.pwconv1", LINEAR),
            (f"{_MIXER}/fc2", f"{_BLOCK[1]}.pwconv2", LINEAR),
            *END,
        ]
    },
    anchors=("patch_embed.proj.weight",),
    classes=("head.weight",),
    preprocessing={"": Preprocessing()},
    figures={
        "ms_mlp_t": Figures(28_656_232, 4.438, 82.1),
        "ms_mlp_s": Figures(50_303_752, 8.667, 83.4),
        "ms_mlp_b": Figures(88_696_792, 15.334, 83.8),
    },
    recipes={size: Recipe(rate) for size, (*_, rate) in _SIZES.items()},
    config="finetune.py:{preset}",
)
