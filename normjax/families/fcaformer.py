"""FcaFormer (Zhang et al., 2023)."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import (
    CONV,
    DEPTHWISE,
    LINEAR,
    NORM,
    Kind,
    Row,
    depthwise,
)

_SIZES: dict[str, tuple[Any, ...]] = {
    # widths, depths, heads of the last two stages, drop path
    "l1": ((64, 128, 192, 320), (2, 2, 6, 2), (6, 10), 0.0),
    "l2": ((96, 192, 320, 480), (2, 2, 7, 2), (10, 15), 0.1),
    "l3": ((96, 192, 320, 512), (3, 6, 12, 3), (10, 16), 0.2),
    "l4": ((128, 256, 512, 768), (3, 6, 12, 3), (16, 24), 0.4),
}
_BLOCK = "blocks_{s}_{i}", "layer_{s}.blocks.{i}"
_MIXER = f"{_BLOCK[0]}/mixer"
_TABLES: Kind = {
    "offset_bias": ("attention_biases", "head_table"),
    "cross_bias": ("s_token_bias", "token_bias"),
    "cross_scale": ("s_scale_factors", "batched"),
}


def _stem(dim: int) -> Arguments:
    units = {"hidden": (dim // 2,), "strides": (2, 2), "pool": False}
    return {**units, "activate_last": False}


def _fcaformer(size: str) -> Arguments:
    dims, depths, heads, _ = _SIZES[size]
    local = {"name": "convnext", "norm": layer_norm(1e-6)}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": (1, 1, *heads),
        "norm": layer_norm(1e-5),
        "embed_norm": {"name": "batch_norm", "epsilon": 1e-5},
        "mixer": ("identity", "identity", "forward_cross", "forward_cross"),
        "branches": (local, local, "forward_cross", "forward_cross"),
        "layer_scale": 1e-6,
        "stem": {"name": "conv_units", **_stem(dims[0])},
        "merge": "separable_conv",
        "pool": "mean_first",
    }


def _unit(ours: str, theirs: str, kind: Kind = CONV) -> list[Row]:
    return [
        (f"{ours}/conv", f"{theirs}.c", kind),
        (f"{ours}/norm", f"{theirs}.bn", NORM),
    ]


def _blocks() -> list[Row]:
    ours, theirs = _BLOCK
    local = f"{ours}/local"
    scales: Kind = {
        "local_layer_scale/scale": ("gamma", "same"),
        "mixer_layer_scale/scale": ("gamma_1", "same"),
        "mlp_layer_scale/scale": ("gamma_2", "same"),
    }
    return [
        (local, theirs, depthwise("dwc", "dwconv")),
        (f"{local}/norm", f"{theirs}.norm", NORM),
        (f"{local}/mlp/fc1", f"{theirs}.pwconv1", LINEAR),
        (f"{local}/mlp/fc2", f"{theirs}.pwconv2", LINEAR),
        (f"{ours}/mlp/mlp/fc1", f"{theirs}.mlp.fc1", LINEAR),
        (f"{ours}/mlp/mlp/fc2", f"{theirs}.mlp.fc2", LINEAR),
        (f"{ours}/mlp/norm", f"{theirs}.mlp.norm", NORM),
        (ours, theirs, scales),
        (f"{ours}/norm1", f"{theirs}.norm1", NORM),
        (f"{ours}/norm2", f"{theirs}.norm2", NORM),
        (f"{_MIXER}/qkv", f"{theirs}.qkv", LINEAR),
        (f"{_MIXER}/proj", f"{theirs}.proj", LINEAR),
        (f"{_MIXER}/cross_norm", f"{theirs}.s_norm", NORM),
        (_MIXER, theirs, _TABLES),
        (f"{ours}/cross/tokens", f"{theirs}.dw_conv", DEPTHWISE),
        *_unit(f"{ours}/cross/local", f"{theirs}.local_conv", DEPTHWISE),
    ]


def _units() -> list[Row]:
    merge = "layer_{last}.downsample"
    return [
        *_unit("stem/unit_0", "patch_embed.seq.0"),
        *_unit("stem/unit_1", "patch_embed.seq.2"),
        *_unit("merge_{s}/expand", f"{merge}.conv1"),
        *_unit("merge_{s}/depthwise", f"{merge}.conv2", DEPTHWISE),
        *_unit("merge_{s}/project", f"{merge}.conv3"),
    ]


FCAFORMER = Family(
    name="fcaformer",
    presets={f"fcaformer_{size}": _fcaformer(size) for size in _SIZES},
    layouts={
        "fcaformer": [
            *_units(),
            *_blocks(),
            ("norm", "norm_head", NORM),
            ("head", "head", LINEAR),
        ]
    },
    anchors=("patch_embed.seq.0.c.weight",),
    classes=("head.weight",),
    epsilon=1e-5,
    preprocessing={"": Preprocessing()},
    figures={
        "fcaformer_l1": Figures(6_187_560, 1.374, 80.3),
        "fcaformer_l2": Figures(16_275_870, 3.602, 83.1),
        "fcaformer_l3": Figures(27_894_484, 6.651, 84.2),
        "fcaformer_l4": Figures(65_638_204, 14.492, 84.9),
    },
    recipes={size: Recipe(rate) for size, (*_, rate) in _SIZES.items()},
    config="finetune.py:{preset}",
)
