"""Norms where a batch has four images.

    python -m normjax.study small_batches --workdir=runs/small_batches

A residual network on scanned digits, 800 updates of 4 images. WS: weights are
standardized.
"""

from typing import Any

from configs.studies.common import changed, resnet
from normjax.study.claims import Claim

NORMS = {
    "batch_norm": ("batch_norm", False),
    "group_norm": ("group_norm", False),
    "group_norm, WS": ("group_norm", True),
    "batch_channel_norm, WS": ("batch_channel_norm", True),
    "evonorm_s0": ("evonorm_s0", False),
    "evonorm_b0": ("evonorm_b0", False),
}
COLUMN = "batch of 4"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    batch, group = ("batch_norm", COLUMN), ("group_norm", COLUMN)
    return {
        "title": "digits: test top-1, 4 images a batch",
        "rows": "norm",
        "runs": {
            (row, COLUMN): _config(norm, standardized)
            for row, (norm, standardized) in NORMS.items()
        },
        "claims": (
            Claim(
                "In small batches GroupNorm is ahead of BatchNorm.",
                "Group Normalization (Wu & He, 2018)",
                "ResNet-50, batch of 2: 10.6 points less error",
                group,
                batch,
            ),
            Claim(
                "Weight standardization helps GroupNorm.",
                "Weight Standardization (Qiao et al., 2019)",
                "ResNet-50 on ImageNet: less error",
                ("group_norm, WS", COLUMN),
                group,
            ),
            Claim(
                "Batch-channel norm with it is ahead of GroupNorm with it.",
                "BCN (Qiao et al., 2019)",
                "better with micro-batches",
                ("batch_channel_norm, WS", COLUMN),
                ("group_norm, WS", COLUMN),
            ),
            Claim(
                "EvoNorm-S0 is ahead of BatchNorm in small batches.",
                "EvoNorm (Liu et al., 2020)",
                "holds in small batches",
                ("evonorm_s0", COLUMN),
                batch,
            ),
        ),
    }


def _config(norm: str, standardized: bool) -> Any:
    config = changed(resnet(f"norm={norm}", steps=800), batch_size=4)
    config.recalibrate_batches = 0
    if norm in ("group_norm", "batch_channel_norm", "evonorm_s0"):
        config.model.norm.num_groups = 8
    if standardized:
        rule = {"pattern": "conv|shortcut", "name": "weight_standardization"}
        config.reparam = (rule,)
    return config
