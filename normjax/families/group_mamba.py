"""GroupMamba (Shaker et al., 2024)."""

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
    LINEAR,
    NORM,
    STAGE_NORMS,
    Kind,
    Row,
    conv_merge,
    depthwise_block,
)

_SIZES: dict[str, tuple[Any, ...]] = {
    # width of the stem, widths, depths
    "tiny": (32, (64, 128, 348, 448), (3, 4, 9, 3)),
    "small": (64, (64, 128, 348, 512), (3, 4, 16, 3)),
    "base": (64, (96, 192, 424, 512), (3, 6, 21, 3)),
}
_BATCH_NORM = {"name": "batch_norm", "epsilon": 1e-5}
_DIRECTIONS = range(4)


def _group_mamba(size: str) -> Arguments:
    stem, dims, depths = _SIZES[size]
    units = {"kernel_sizes": (7, 3, 3), "strides": (2, 1, 1), "hidden": (stem,) * 3}
    units |= {"unit_norm": _BATCH_NORM, "unit_activation": "relu", "end": "conv_norm"}
    units |= {"pool": False}
    merge = {"kernel_size": 3, "stride": 2, "padding": 1}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": (1, 1, 1, 1),
        "mlp_ratio": (8.0, 8.0, 4.0, 4.0),
        "norm": layer_norm(1e-6),
        "embed_norm": layer_norm(1e-5),
        "mixer": {"name": "group_mamba", "norm": layer_norm(1e-5)},
        "mlp": "depthwise_mlp",
        "branches": {"name": "transformer", "mixer_norm": "none"},
        "stem": {"name": "conv_units", **units},
        "merge": {"name": "conv_norm", **merge},
        "stage_norm": True,
        "pool": "mean_first",
        "pooled_block": {"name": "transformer", "mixer_norm": "output"},
        "distilled": True,
    }


def _of_all(name: str, transform: Any) -> tuple[tuple[str, ...], Any]:
    """An array that each direction has there."""
    return tuple(f"mamba_g{i + 1}.{name}" for i in _DIRECTIONS), transform


_SCANS: Kind = {
    "in_proj/kernel": _of_all("in_proj.weight", ("block_weights",)),
    "out_proj/kernel": _of_all("out_proj.weight", ("block_weights",)),
    "x_proj/kernel": _of_all("x_proj_weight", ("block_weights", 1)),
    "dt_proj/kernel": _of_all("dt_projs_weight", ("block_weights", 1)),
    "dt_proj/bias": _of_all("dt_projs_bias", ("joined_rows", 4)),
    "conv_kernel": _of_all("conv2d.weight", ("joined_depthwise", 4)),
    "conv_bias": _of_all("conv2d.bias", ("joined_bias", 4)),
    "a_log": _of_all("A_logs", ("joined_bias", 4)),
    "skip": _of_all("Ds", ("joined_bias", 4)),
}


def _mixer(ours: str, theirs: str) -> list[Row]:
    norms = [
        (f"{ours}/scans/norm_{i}", f"{theirs}.mamba_g{i + 1}.out_norm", NORM)
        for i in _DIRECTIONS
    ]
    return [
        (ours, theirs, {"scale": ("skip_scale", "same")}),
        (f"{ours}/fc1", f"{theirs}.fc1", LINEAR),
        (f"{ours}/fc2", f"{theirs}.fc2", LINEAR),
        (f"{ours}/norm", f"{theirs}.norm", NORM),
        (f"{ours}/proj", f"{theirs}.proj", LINEAR),
        (f"{ours}/scans", theirs, _SCANS),
        *norms,
    ]


def _rows() -> list[Row]:
    stem, end = "patch_embed1", "post_network.0"
    units = [
        row
        for i in range(3)
        for row in (
            (f"stem/unit_{i}/conv", f"{stem}.conv.{3 * i}", CONV),
            (f"stem/unit_{i}/norm", f"{stem}.conv.{3 * i + 1}", NORM),
        )
    ]
    return [
        *units,
        *conv_merge("stem/last", stem),
        *conv_merge("merge_{s}", "patch_embed{next}"),
        *depthwise_block("blocks_{s}_{i}", "block{next}.{i}"),
        *_mixer("blocks_{s}_{i}/mixer", "block{next}.{i}.attn"),
        *STAGE_NORMS,
        *_mixer("pooled/mixer", f"{end}.attn"),
        ("pooled/norm1_out", f"{end}.norm1", NORM),
        ("pooled/norm2", f"{end}.norm2", NORM),
        ("pooled/mlp/fc1", f"{end}.mlp.fc1", LINEAR),
        ("pooled/mlp/fc2", f"{end}.mlp.fc2", LINEAR),
        ("head", "head", LINEAR),
        ("head_dist", "dist_head", LINEAR),
    ]


GROUP_MAMBA = Family(
    name="groupmamba",
    presets={f"groupmamba_{size}": _group_mamba(size) for size in _SIZES},
    layouts={"groupmamba": _rows()},
    anchors=("patch_embed1.conv.0.weight",),
    classes=("head.weight",),
    optional={r"dist_head\.(weight|bias)": "the model has no head of distillation"},
    preprocessing={"": Preprocessing()},
    figures={
        "groupmamba_tiny": Figures(23_361_917, 4.649, 83.3),
        "groupmamba_small": Figures(34_781_555, 7.207, 83.9),
        "groupmamba_base": Figures(57_150_838, 14.067, 84.5),
    },
    recipes={size: Recipe(0.05) for size in _SIZES},
    config="finetune.py:{preset}",
)
