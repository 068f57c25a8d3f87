"""ResNet (He et al., 2016): those for ImageNet, and that of 20 layers for 32 pixels."""

from typing import Any

from normjax.families.base import Arguments, Family, Figures, Preprocessing
from normjax.families.layout import CONV, LINEAR, NORM, Row


def _resnet(*depths: int, **other: Any) -> Arguments:
    return {"name": "resnet", "depths": depths, **other}


def _unit(ours: str, conv: str, norm: str) -> list[Row]:
    return [(f"{ours}/conv", conv, CONV), (f"{ours}/norm", norm, NORM)]


_BLOCK = "blocks_{s}_{i}", "layer{next}.{i}"
_UNITS = [
    row
    for i in range(3)
    for row in _unit(
        f"{_BLOCK[0]}/unit_{i}", f"{_BLOCK[1]}.conv{i + 1}", f"{_BLOCK[1]}.bn{i + 1}"
    )
]
_SHORTCUT = f"{_BLOCK[1]}.downsample"

RESNET = Family(
    name="resnet",
    presets={
        "resnet18": _resnet(2, 2, 2, 2),
        "resnet34": _resnet(3, 4, 6, 3),
        "resnet50": _resnet(3, 4, 6, 3, block="bottleneck"),
        "resnet101": _resnet(3, 4, 23, 3, block="bottleneck"),
        "resnet152": _resnet(3, 8, 36, 3, block="bottleneck"),
        # The published networks for 32 pixels have no parameters in their shortcuts.
        "resnet20": _resnet(
            3,
            3,
            3,
            widths=(16, 32, 64),
            stem={"name": "conv_unit", "stride": 1},
            shortcut="pad",
        ),
    },
    layouts={
        "resnet": [
            *_unit("stem/unit", "conv1", "bn1"),
            *_UNITS,
            *_unit(f"{_BLOCK[0]}/shortcut", f"{_SHORTCUT}.0", f"{_SHORTCUT}.1"),
            ("head", "fc", LINEAR),
        ]
    },
    anchors=("layer1.0.conv1.weight",),
    stems=("conv1.weight",),
    classes=("fc.weight",),
    preprocessing={
        "": Preprocessing(interpolation="bilinear"),
        "resnet20": Preprocessing(image_size=32, crop_ratio=1.0),
    },
    figures={
        "resnet18": Figures(11_689_512, 1.814, 69.758, "torchvision V1"),
        "resnet34": Figures(21_797_672, 3.664, 73.314, "torchvision V1"),
        "resnet50": Figures(25_557_032, 4.089, 76.130, "torchvision V1"),
        "resnet101": Figures(44_549_160, 7.801, 77.374, "torchvision V1"),
        "resnet152": Figures(60_192_808, 11.514, 78.312, "torchvision V1"),
    },
    config="finetune.py:{preset}",
)
