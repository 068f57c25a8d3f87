"""Large batches, with statistics of all of it or of small parts.

    python -m normjax.study ghost_batches --workdir=runs/ghost_batches

A residual network on scanned digits, 125 updates of 512 or 1,000 of 64 images.
"""

from typing import Any

from configs.studies.common import changed, resnet
from normjax.study.claims import Claim

SOURCE = "Hoffer, Hubara & Soudry, 2017"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    ghost, whole = ("ghost_batch_norm", "512"), ("batch_norm", "512")
    return {
        "title": "digits: test top-1 by batch size, as many images",
        "rows": "norm",
        "runs": {
            ("batch_norm", "64"): _config("batch_norm", 64, 1000),
            whole: _config("batch_norm", 512, 125),
            ghost: _config("ghost_batch_norm", 512, 125),
        },
        "claims": (
            Claim(
                "In large batches ghost batches generalise better.",
                SOURCE,
                "ResNet-44 on CIFAR-10, batch 4,096: part of the gap is closed",
                ghost,
                whole,
            ),
            Claim(
                "Large batches generalise worse after as many images.",
                SOURCE,
                "a gap of several points",
                ("batch_norm", "64"),
                whole,
            ),
        ),
    }


def _config(norm: str, batch_size: int, steps: int) -> Any:
    config = changed(resnet(f"norm={norm}", steps=steps), batch_size=batch_size)
    config.recalibrate_batches = 0
    if norm == "ghost_batch_norm":
        config.model.norm.group_size = 32
    return config
