"""Batch statistics in text: PowerNorm, and how much they fluctuate.

    python -m normjax.study text_batch_statistics --workdir=runs/text_batch_statistics

A byte-level decoder and, for its fluctuation, a vision transformer with BatchNorm.
*Fluctuation*: |mean of a batch - running mean| / running standard deviation, mean over
channels and norms.
"""

from typing import Any

from configs.studies.common import decoder, vit
from normjax.study.cells import Measure
from normjax.study.claims import Claim

SOURCE = "PowerNorm (Shen et al., 2020)"
FLUCTUATION = "statistics_fluctuation"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    layer, batch, power, plain = (
        (norm, "text")
        for norm in ("layer_norm", "batch_norm", "power_norm", "power_norm, no groups")
    )
    return {
        "title": "pytext: bits per byte",
        "rows": "norm",
        "metric": "bits_per_byte",
        "percent": False,
        "runs": {
            layer: decoder("norm=layer_norm"),
            batch: _batch_norm(decoder("norm=batch_norm")),
            ("batch_norm", "images"): _batch_norm(vit("norm=batch_norm")),
            power: decoder("norm=power_norm"),
            plain: _ungrouped(),
        },
        "claims": (
            Claim(
                "PowerNorm is ahead of LayerNorm.",
                SOURCE,
                "PTB 5.6 and WikiText-103 3.0 less perplexity",
                layer,
                power,
            ),
            Claim(
                "BatchNorm is behind LayerNorm in text.",
                SOURCE,
                "about a point of BLEU less on IWSLT14",
                batch,
                layer,
            ),
            Claim(
                "Group scaling is part of what makes PowerNorm work.",
                "PowerNorm's released code, 2020",
                "on in all its runs",
                plain,
                power,
            ),
            Claim(
                "Batch statistics fluctuate more in text than in images.",
                SOURCE,
                "orders of magnitude more than ResNet-20 on CIFAR-10",
                batch,
                ("batch_norm", "images"),
                metric=f"{FLUCTUATION}_mean",
            ),
        ),
    }


def _batch_norm(config: Any) -> Any:
    config.diagnostics_every = config.total_steps
    return Measure("last_layers", {"quantity": FLUCTUATION}, config)


def _ungrouped() -> Any:
    config = decoder("norm=power_norm")
    config.model.norm.num_groups = 0
    return config
