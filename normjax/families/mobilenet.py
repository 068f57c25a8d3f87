"""MobileNetV2 (Sandler et al., 2018)."""

from normjax.families.base import Family, Preprocessing
from normjax.families.layout import CONV, DEPTHWISE, LINEAR, NORM, Row

_STAGES = (1, 2, 3, 4, 3, 3, 1)
"""Blocks of each; the first block does not expand."""


def _unit(ours: str, conv: str, norm: str) -> list[Row]:
    kind = DEPTHWISE if ours.endswith("depthwise") else CONV
    return [(f"{ours}/conv", conv, kind), (f"{ours}/norm", norm, NORM)]


def _torchvision() -> list[Row]:
    first, block = "features.1.conv", "features.{next}.conv"
    last = f"features.{sum(_STAGES) + 1}"
    return [
        *_unit("stem/unit", "features.0.0", "features.0.1"),
        *_unit("blocks_0/depthwise", f"{first}.0.0", f"{first}.0.1"),
        *_unit("blocks_0/project", f"{first}.1", f"{first}.2"),
        *_unit("blocks_{s}/expand", f"{block}.0.0", f"{block}.0.1"),
        *_unit("blocks_{s}/depthwise", f"{block}.1.0", f"{block}.1.1"),
        *_unit("blocks_{s}/project", f"{block}.2", f"{block}.3"),
        *_unit("last", f"{last}.0", f"{last}.1"),
        ("head", "classifier.1", LINEAR),
    ]


def _timm() -> list[Row]:
    rows = [*_unit("stem/unit", "conv_stem", "bn1"), *_unit("last", "conv_head", "bn2")]
    places = [(s, i) for s, count in enumerate(_STAGES) for i in range(count)]
    for number, (s, i) in enumerate(places):
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        if not number:
            parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        for n, (part, conv) in enumerate(parts.items(), 1):
            block = f"blocks.{s}.{i}"
            ours = f"blocks_{number}/{part}"
            rows += _unit(ours, f"{block}.{conv}", f"{block}.bn{n}")
    return [*rows, ("head", "classifier", LINEAR)]


MOBILENET = Family(
    name="mobilenet",
    presets={"mobilenet_v2": {"name": "mobilenet_v2"}},
    layouts={"mobilenet_torchvision": _torchvision(), "mobilenet_timm": _timm()},
    anchors=("features.0.0.weight", "conv_stem.weight"),
    classes=("classifier.1.weight", "classifier.weight"),
    preprocessing={"": Preprocessing(interpolation="bilinear")},
    config="finetune.py:{preset}",
)
