"""Batch statistics under shift: a network meets blurred digits that nobody labelled.

    python -m normjax.study shift --workdir=runs/shift

A residual network trained on clean scanned digits, tested on noisy ones, in random
order or one class after the other. Top-1.
"""

from typing import Any

from configs.studies.common import resnet
from normjax.study.cells import Measure
from normjax.study.claims import Claim

METHODS = ("source", "batch_stats", "alpha_bn", "unmix_tns")
ORDERS = ("iid", "correlated")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: top-1 under noise, adapted",
        "rows": "adaptation",
        "runs": {
            (method, order): _adapted(method, order)
            for method in METHODS
            for order in ORDERS
        },
        "metric": "adapted",
        "claims": (
            Claim(
                "Statistics of the batch repair what noise breaks.",
                "Nado et al., 2020",
                "less error on ImageNet-C",
                ("batch_stats", "iid"),
                ("source", "iid"),
            ),
            Claim(
                "Mixing them with those of the source is better than either.",
                "alpha-BN (You, Li & Zhao, 2021)",
                "ahead of both on ImageNet-C",
                ("alpha_bn", "iid"),
                ("batch_stats", "iid"),
            ),
            Claim(
                "In a correlated stream statistics of the batch do harm.",
                "UnMix-TNS (Tomar et al., 2024)",
                "far more errors than the source",
                ("source", "correlated"),
                ("batch_stats", "correlated"),
            ),
            Claim(
                "UnMix-TNS holds in a correlated stream.",
                "UnMix-TNS (Tomar et al., 2024)",
                "far ahead of statistics of the batch",
                ("unmix_tns", "correlated"),
                ("batch_stats", "correlated"),
            ),
        ),
    }


def _adapted(method: str, order: str) -> Measure:
    stream = {"method": method, "order": order, "corruption": "gaussian_noise"}
    return Measure("adapted", stream, resnet())
