"""ViG and its pyramid ViG-H (Liao et al., 2024): gated linear attention both ways."""

from typing import Any

from normjax.families.base import (
    Arguments,
    Family,
    Figures,
    Preprocessing,
    Recipe,
    layer_norm,
)
from normjax.families.layout import CONV, LINEAR, NORM, Kind, Row

_SIZES = {
    # width, heads
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
}
_BLOCK = "blocks_{i}", "blocks.{i}"
_RATES = {"tiny": 0.0, "small": 0.2, "base": 0.5}
_SWIGLU = {"name": "swiglu", "keep_size": False}
_EPSILON = 1e-6  # of the norms of heads, which is not the default of their class


def _hidden(dim: int, multiple: int) -> int:
    """Width inside the MLP: 8 / 3 of the stream, rounded up."""
    return -(-(8 * dim // 3) // multiple) * multiple


def _mixer(activated: bool) -> Arguments:
    return {
        "name": "vig",
        "epsilon": _EPSILON,
        "conv_activation": activated,
        "output_activation": activated,
    }


def _vig(size: str, **other: Any) -> Arguments:
    dim, num_heads = _SIZES[size]
    return {
        "name": "vit",
        "dim": dim,
        "depth": 12,
        "num_heads": num_heads,
        "mlp_ratio": _hidden(dim, 256) / dim,
        "norm": {"name": "rms_norm", "epsilon": _EPSILON},
        "embed_norm": layer_norm(1e-5),
        # Both, or neither: the weights do not tell.
        "mixer": _mixer(activated=size == "tiny"),
        "activation": "silu",
        "mlp": _SWIGLU,
        "stem": {"name": "conv_stack", "kernel_sizes": (9, 3), "strides": (8, 2)},
        **other,
    }


_MIXER: list[Row] = [
    ("", "", {"conv_kernel": ("in_proj.0.weight", "depthwise")}),
    ("/qkv", ".qkv_proj", LINEAR),
    ("/log_decay/down", ".gk_proj.0", LINEAR),
    ("/log_decay/up", ".gk_proj.1", LINEAR),
    ("/norm", ".g_norm", NORM),
    ("/local_norm", ".l_norm", NORM),
    ("/share", ".g_proj", LINEAR),
    ("/proj", ".o_proj", LINEAR),
]


def _mixer_rows(ours: str, theirs: str) -> list[Row]:
    return [(f"{ours}/mixer{o}", f"{theirs}{t}", kind) for o, t, kind in _MIXER]


_TABLE: Kind = {"pos_embed": ("pos_embed", "tokens")}

_PYRAMIDS: dict[str, tuple[Any, ...]] = {
    # depths, width and heads of the first stage
    "tiny": ((2, 2, 5, 2), 96, 3),
    "small": ((2, 2, 17, 2), 96, 3),
    "base": ((2, 2, 17, 2), 128, 4),
}
_PYRAMID_RATES = {"h_tiny": 0.2, "h_small": 0.3, "h_base": 0.6}


def _vig_h(size: str) -> Arguments:
    depths, dim, num_heads = _PYRAMIDS[size]
    dims = tuple(dim << i for i in range(4))
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": tuple(num_heads << i for i in range(4)),
        "mlp_ratio": tuple(_hidden(dim, 32) / dim for dim in dims),
        "norm": layer_norm(1e-5),
        "mixer": _mixer(activated=False),
        "mlp": _SWIGLU,
        "stem": "conv_stack",
        "merge": {"name": "conv_norm", **merge},
    }


_H_BLOCK = "blocks_{s}_{i}", "layers.{s}.blocks.{i}"


def _pyramid_layout(
    conv: str, conv_norm: str, norm: str, op: str, end: str
) -> list[Row]:
    """Rows of ViG-H: names of the first convolution, its norm, and of a block."""
    return [
        ("stem/conv_0", conv, CONV),
        ("stem/norm_0", conv_norm, NORM),
        ("stem/conv_1", "patch_embed.5", CONV),
        ("stem/norm_1", "patch_embed.7", NORM),
        ("merge_{s}/proj", "layers.{last}.downsample.1", CONV),
        ("merge_{s}/norm", "layers.{last}.downsample.3", NORM),
        (f"{_H_BLOCK[0]}/norm1", f"{_H_BLOCK[1]}.{norm}", NORM),
        (f"{_H_BLOCK[0]}/norm2", f"{_H_BLOCK[1]}.norm2", NORM),
        *_mixer_rows(_H_BLOCK[0], f"{_H_BLOCK[1]}.{op}"),
        (f"{_H_BLOCK[0]}/mlp/fc1", f"{_H_BLOCK[1]}.mlp.fc1", LINEAR),
        (f"{_H_BLOCK[0]}/mlp/fc2", f"{_H_BLOCK[1]}.mlp.fc2", LINEAR),
        ("norm", f"{end}norm", NORM),
        ("head", f"{end}head", LINEAR),
    ]


VIG = Family(
    name="vig",
    presets={
        **{f"vig_{size}": _vig(size) for size in _SIZES},
        **{f"vig_h_{size}": _vig_h(size) for size in _PYRAMIDS},
    },
    layouts={
        "vig": [
            ("", "", _TABLE),
            ("stem/conv_0", "patch_embed.proj.0", CONV),
            ("stem/norm_0", "patch_embed.proj.1", NORM),
            ("stem/conv_1", "patch_embed.proj.3", CONV),
            ("stem/norm_1", "patch_embed.proj.4", NORM),
            (f"{_BLOCK[0]}/norm1", f"{_BLOCK[1]}.attn_norm", NORM),
            (f"{_BLOCK[0]}/norm2", f"{_BLOCK[1]}.mlp_norm", NORM),
            *_mixer_rows(_BLOCK[0], f"{_BLOCK[1]}.attn"),
            (f"{_BLOCK[0]}/mlp/fc1", f"{_BLOCK[1]}.mlp.gate_proj", LINEAR),
            (f"{_BLOCK[0]}/mlp/fc2", f"{_BLOCK[1]}.mlp.down_proj", LINEAR),
            ("norm", "norm", NORM),
            ("head", "head", LINEAR),
        ],
        "vig_h": _pyramid_layout(
            "patch_embed.0", "patch_embed.2", "norm", "op", "classifier."
        ),
        "vig_h_old": _pyramid_layout(
            "patch_embed.proj", "patch_embed.norm", "ln_1", "self_attention", ""
        ),
    },
    anchors=(
        "patch_embed.proj.0.weight",
        "patch_embed.0.weight",
        "patch_embed.proj.weight",
    ),
    classes=("head.weight", "classifier.head.weight"),
    # Linear maps, and the recurrence as it is defined: in both directions an update and
    # a read of each token. In blocks, as computed here, it is 2 to 6 % more in all.
    figures={
        "vig_tiny": Figures(5_834_536, 1.168, 77.2),
        "vig_small": Figures(22_615_144, 4.482, 81.7),
        "vig_base": Figures(89_022_184, 17.546, 82.6),
        "vig_h_tiny": Figures(28_600_680, 4.495, 82.8),
        "vig_h_small": Figures(50_051_688, 8.752, 83.8),
        "vig_h_base": Figures(88_904_360, 15.557, 84.2),
    },
    preprocessing={"": Preprocessing()},
    recipes={k: Recipe(drop_path=v) for k, v in (_RATES | _PYRAMID_RATES).items()},
    config="finetune.py:{preset}",
)
