"""FaViT (Qin et al., 2023)."""

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
    POINTWISE,
    STAGE_NORMS,
    Row,
    conv_merge,
    depthwise,
    depthwise_block,
)

_SIZES = {
    # widths, depths
    "b0": ((32, 64, 128, 256), (2, 2, 6, 2)),
    "b1": ((64, 128, 256, 512), (2, 2, 6, 2)),
    "b2": ((64, 128, 256, 512), (2, 3, 18, 3)),
    "b3": ((96, 192, 384, 768), (2, 3, 14, 3)),
}
_BLOCK = "blocks_{s}_{i}", "block{next}.{i}"


def _favit(size: str) -> Arguments:
    dims, depths = _SIZES[size]
    merge = {"name": "conv_norm", "kernel_size": 3, "stride": 2, "padding": 1}
    mixers = ({"name": "factorization", "sr_ratio": r} for r in (8, 4, 2, 1))
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": (1, 2, 4, 8),
        "mlp_ratio": (8.0, 6.0, 4.0, 4.0),
        "norm": layer_norm(1e-6),
        "embed_norm": layer_norm(1e-5),
        "mixer": tuple(mixers),
        "mlp": "depthwise_mlp",
        "stem": {**merge, "kernel_size": 7, "stride": 4, "padding": 3},
        "merge": merge,
        "stage_norm": True,
    }


def _mixer(ours: str, theirs: str) -> list[Row]:
    local = {
        **depthwise("whole_value", "local_conv_g"),
        **depthwise("local", "kv_l.depth_conv"),
        **depthwise("windows_0_value", "local_convs.0"),
        **depthwise("windows_1_value", "local_convs.1"),
    }
    rows: list[Row] = [
        (f"{ours}/q", f"{theirs}.q", LINEAR),
        (f"{ours}/sr", f"{theirs}.sr", CONV),
        (f"{ours}/norm", f"{theirs}.norm", NORM),
        (f"{ours}/kv", f"{theirs}.kv_g", LINEAR),
        (f"{ours}/local_point", f"{theirs}.kv_l.point_conv", POINTWISE),
        (ours, theirs, local),
        (f"{ours}/proj", f"{theirs}.proj", LINEAR),
    ]
    for i in (0, 1):
        rows += [
            (f"{ours}/windows_{i}_mean", f"{theirs}.fcs.{i}", LINEAR),
            (f"{ours}/windows_{i}_kv", f"{theirs}.single_heads.{i}", LINEAR),
        ]
    return rows


FAVIT = Family(
    name="favit",
    presets={f"favit_{size}": _favit(size) for size in _SIZES},
    layouts={
        "favit": [
            *conv_merge("stem", "patch_embed1"),
            *conv_merge("merge_{s}", "patch_embed{next}"),
            *depthwise_block(*_BLOCK),
            *_mixer(f"{_BLOCK[0]}/mixer", f"{_BLOCK[1]}.attn"),
            *STAGE_NORMS,
            ("head", "head", LINEAR),
        ]
    },
    anchors=("patch_embed1.proj.weight",),
    classes=("head.weight",),
    preprocessing={"": Preprocessing()},
    figures={
        "favit_b0": Figures(3_427_704, 0.632, 71.5),
        "favit_b1": Figures(12_958_568, 2.344, 79.4),
        "favit_b2": Figures(24_919_896, 4.458, 82.3),
        "favit_b3": Figures(48_746_440, 8.512, 83.4),
    },
    recipes={"b0": Recipe(0.1)},
    config="finetune.py:{preset}",
)
