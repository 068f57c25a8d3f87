"""Label smoothing and calibration.

    python -m normjax.study label_smoothing --workdir=runs/label_smoothing

A residual network on scanned digits trained to certainty (no augmentation); expected
calibration error with 15 bins.
"""

from typing import Any

from configs.studies.common import changed, resnet
from normjax.study.claims import Claim

SOURCE = "Mueller, Kornblith & Hinton, 2019"
AMOUNTS = ("0.0", "0.1", "0.4")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    none, some, much = ((amount, "ResNet") for amount in AMOUNTS)
    return {
        "title": "digits: expected calibration error",
        "rows": "label smoothing",
        "metric": "ece",
        "runs": {
            (amount, "ResNet"): changed(
                resnet(steps=400),
                data__label_smoothing=float(amount),
                data__augment__crop_padding=0,
            )
            for amount in AMOUNTS
        },
        "claims": (
            Claim(
                "Label smoothing of 0.1 calibrates a network.",
                SOURCE,
                "ResNet-56 on CIFAR-100: much less ECE, as by temperature",
                none,
                some,
            ),
            Claim(
                "Too much of it makes the network too unsure.",
                "consequence of the same",
                "none given",
                much,
                none,
            ),
        ),
    }
