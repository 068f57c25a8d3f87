"""SG-Former (Ren et al., 2023)."""

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
    Q_KV,
    STAGE_NORMS,
    Kind,
    Row,
    depthwise,
    depthwise_block,
)

_SIZES: dict[str, tuple[Any, ...]] = {
    # widths, heads, depths, drop path
    "s": ((64, 128, 256, 512), (2, 4, 8, 16), (2, 4, 16, 1), 0.1),
    "m": ((64, 128, 256, 512), (2, 4, 8, 16), (2, 6, 28, 2), 0.2),
    "b": ((96, 192, 384, 768), (4, 6, 12, 24), (4, 6, 24, 2), 0.4),
}
_GROUPS = {8: (196, 56, 28), 4: (49, 14, 7), 2: (2, 1)}
"""By how much a stage reduces its map."""
_ONE_GROUP = {"name": "group_norm", "num_groups": 1, "epsilon": 1e-5}


def _sg_former(size: str) -> Arguments:
    dims, heads, depths, _ = _SIZES[size]
    pairs = tuple(
        (
            {"name": "self_guided_hybrid", "sr_ratio": ratio},
            {"name": "self_guided", "group_sizes": groups},
        )
        for ratio, groups in _GROUPS.items()
    )
    units = {"kernel_sizes": (3, 3, 3), "strides": (2, 1, 2), "hidden": (dims[0],) * 2}
    units |= {"activate_last": False, "unit_norm": _ONE_GROUP, "end": "norm"}
    units |= {"pool": False}
    return {
        "name": "pyramid",
        "depths": depths,
        "dims": dims,
        "num_heads": heads,
        "norm": layer_norm(1e-6),
        "embed_norm": layer_norm(1e-5),
        "mixer": (*pairs, "locally_enhanced"),
        "mlp": {"name": "depthwise_mlp", "residual": True},
        "stem": {"name": "conv_units", **units},
        "merge": {"name": "separable_conv", "unit_norm": _ONE_GROUP},
        "pos_embed": ("sine", False, False, False),
        "stage_norm": True,
    }


def _unit(ours: str, theirs: str, kind: Kind = CONV) -> list[Row]:
    return [
        (f"{ours}/conv", f"{theirs}.c", kind),
        (f"{ours}/norm", f"{theirs}.bn", NORM),
    ]


def _mixer(ours: str, theirs: str) -> list[Row]:
    names = {"lepe_in": "lepe_linear", "proj": "proj", "q": "q"}
    names |= {name: name for name in ("q1", "q2", "kv1", "kv2")}
    names |= {f"group_{i}": f"f{i}" for i in (1, 2, 3)}
    return [
        *((f"{ours}/{k}", f"{theirs}.{name}", LINEAR) for k, name in names.items()),
        (f"{ours}/qkv", theirs, Q_KV),
        (f"{ours}/sr", f"{theirs}.sr", CONV),
        (f"{ours}/norm", f"{theirs}.norm", NORM),
        (ours, theirs, depthwise("lepe", "lepe_conv")),
    ]


SG_FORMER = Family(
    name="sgformer",
    presets={f"sgformer_{size}": _sg_former(size) for size in _SIZES},
    layouts={
        "sgformer": [
            ("", "", {"pos_embed_0": ("pos_embed", "tokens")}),
            *_unit("stem/unit_0", "patch_embed1.conv.0"),
            *_unit("stem/unit_1", "patch_embed1.conv.2"),
            *_unit("stem/unit_2", "patch_embed1.conv.4"),
            ("stem/norm", "patch_embed1.norm", NORM),
            *_unit("merge_{s}/expand", "patch_embed{next}.conv1"),
            *_unit("merge_{s}/depthwise", "patch_embed{next}.conv2", DEPTHWISE),
            *_unit("merge_{s}/project", "patch_embed{next}.conv3"),
            *depthwise_block("blocks_{s}_{i}", "block{next}.{i}"),
            *_mixer("blocks_{s}_{i}/mixer", "block{next}.{i}.attn"),
            *STAGE_NORMS,
            ("head", "head", LINEAR),
        ]
    },
    anchors=("patch_embed1.conv.0.c.weight",),
    classes=("head.weight",),
    preprocessing={"": Preprocessing(crop_ratio=0.9)},
    figures={
        "sgformer_s": Figures(22_545_981, 4.784, 83.2, "quoted by later papers"),
        "sgformer_m": Figures(38_689_316, 7.427),
        "sgformer_b": Figures(77_950_293, 15.543, 84.7),
    },
    recipes={size: Recipe(rate) for size, (*_, rate) in _SIZES.items()},
    config="finetune.py:{preset}",
)
