"""Batches with outliers: statistics of a window, with and without a filter.

    python -m normjax.study outliers --workdir=runs/outliers

A network of two norms on scanned digits; in one batch of ten every value is a hundred
times as large. Top-1 of clean test images after 400 updates.
"""

from typing import Any

from normjax.study.cells import Measure
from normjax.study.claims import Claim

NORMS: dict[str, dict[str, Any]] = {
    "unified_norm": {"name": "unified_norm", "warmup_steps": 40},
    "unified_norm, no filter": {
        "name": "unified_norm",
        "warmup_steps": 40,
        "filter_outliers": False,
    },
    "batch_norm": {"name": "batch_norm"},
    "layer_norm": {"name": "layer_norm"},
}
FACTORS = {"clean": 1.0, "outliers": 100.0}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    source = "UnifiedNorm (Yang et al., 2022)"
    filtered, plain, batch, _ = ((name, "outliers") for name in NORMS)
    return {
        "title": "digits: test top-1, outliers in one batch of ten",
        "rows": "norm",
        "runs": {
            (name, column): Measure("outliers", {"norm": norm, "factor": factor})
            for name, norm in NORMS.items()
            for column, factor in FACTORS.items()
        },
        "claims": (
            Claim(
                "Filtering outliers helps UnifiedNorm where there are some.",
                source,
                "batches with outliers are left out",
                filtered,
                plain,
            ),
            Claim(
                "UnifiedNorm bears outliers better than BatchNorm.",
                source,
                "BatchNorm in transformers fails",
                filtered,
                batch,
            ),
        ),
    }
