"""ResNet (He et al., 2016): those for ImageNet, and that of 20 layers for 32 pixels."""

from typing import Any

from normjax.families.base import Arguments, Family, Preprocessing


def _resnet(*depths: int, **other: Any) -> Arguments:
    return {"name": "resnet", "depths": depths, **other}


RESNET = Family(
    name="resnet",
    presets={
        "resnet18": _resnet(2, 2, 2, 2),
        "resnet34": _resnet(3, 4, 6, 3),
        "resnet50": _resnet(3, 4, 6, 3, block="bottleneck"),
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
    preprocessing={
        "": Preprocessing(interpolation="bilinear"),
        "resnet20": Preprocessing(image_size=32, crop_ratio=1.0),
    },
)
