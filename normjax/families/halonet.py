"""HaloNet (Vaswani et al., 2021), as timm has it: a ResNet that attends in places."""

from typing import Any

from normjax.families.base import Arguments, Family, Figures, Preprocessing
from normjax.families.layout import CONV, LINEAR, NORM, Kind, Row

_BLOCK = "blocks_{s}_{i}", "stages.{s}.{i}"


def _halonet(depths: tuple[int, ...], halo_size: int, **other: Any) -> Arguments:
    return {
        "name": "resnet",
        "depths": depths,
        "block": "bottleneck",
        "norm": {"name": "batch_norm"},
        "mixer": {"name": "halo", "block_size": 8, "halo_size": halo_size},
        "num_heads": 8,
        "stem": "conv_units",
        **other,
    }


def _unit(ours: str, theirs: str) -> list[Row]:
    return [
        (f"{ours}/conv", f"{theirs}.conv", CONV),
        (f"{ours}/norm", f"{theirs}.bn", NORM),
    ]


def _keys_and_values(model: Any, stage: int) -> Kind:
    """Those of a head stand together there."""
    heads = model.heads_of(stage)
    return {"kernel": ("weight", ("by_head_pointwise", heads, 2))}


def _head(model: Any, stage: int) -> Kind:
    """None of a network without attention, which is a ResNet."""
    del stage
    return LINEAR if model.attention else {}


_MIXER = f"{_BLOCK[0]}/unit_1/mixer", f"{_BLOCK[1]}.self_attn"

HALONET = Family(
    name="halonet",
    presets={
        "halonet26t": _halonet((2, 2, 2, 2), 2, attention=((), (), (1,), (0, 1))),
        "halonet50ts": _halonet(
            (3, 4, 6, 3),
            3,
            activation="silu",
            attention=((), (3,), (1, 3, 5), (1,)),
            num_heads=(8, 4, 8, 8),
        ),
        "halonet_h1": _halonet(
            (3, 3, 10, 3),
            3,
            block="straight",
            stem="conv_pool",
            attention=tuple(tuple(range(n)) for n in (3, 3, 10, 3)),
        ),
    },
    layouts={
        "halonet_timm": [
            *(
                row
                for i in range(3)
                for row in _unit(f"stem/unit_{i}", f"stem.conv{i + 1}")
            ),
            *_unit("stem/unit", "stem.conv"),
            *_unit(f"{_BLOCK[0]}/unit_0", f"{_BLOCK[1]}.conv1_1x1"),
            *_unit(f"{_BLOCK[0]}/unit_1", f"{_BLOCK[1]}.conv2_kxk"),
            *_unit(f"{_BLOCK[0]}/unit_2", f"{_BLOCK[1]}.conv3_1x1"),
            *_unit(f"{_BLOCK[0]}/shortcut", f"{_BLOCK[1]}.shortcut"),
            (f"{_BLOCK[0]}/unit_1/attended", f"{_BLOCK[1]}.post_attn", NORM),
            (f"{_MIXER[0]}/q", f"{_MIXER[1]}.q", {"kernel": ("weight", "pointwise")}),
            (f"{_MIXER[0]}/kv", f"{_MIXER[1]}.kv", _keys_and_values),
            (
                _MIXER[0],
                f"{_MIXER[1]}.pos_embed",
                {"height": ("height_rel", "same"), "width": ("width_rel", "same")},
            ),
            ("head", "head.fc", _head),
        ]
    },
    anchors=("stages.0.0.conv1_1x1.conv.weight",),
    stems=("stem.conv1.conv.weight", "stem.conv.conv.weight"),
    classes=("head.fc.weight",),
    epsilon=1e-5,
    figures={
        "halonet26t": Figures(12_480_288, 3.173, 79.134, "timm", 256),
        "halonet50ts": Figures(22_733_280, 5.270, 81.640, "timm", 256),
        "halonet_h1": Figures(8_100_056, image_size=256),
    },
    preprocessing={
        "": Preprocessing(256, 0.95),
        "halonet50ts": Preprocessing(256, 0.94),
    },
    config="finetune.py:{preset}",
)
