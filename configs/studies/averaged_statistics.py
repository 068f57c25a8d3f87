"""Averages of weights, and the batch statistics that go with them.

    python -m normjax.study averaged_statistics --workdir=runs/averaged_statistics

A residual network on scanned digits, 300 updates; weights averaged with decay 0.98.
*Recalibrated*: statistics estimated anew for the weights that are evaluated.
"""

from typing import Any

from configs.studies.common import changed, resnet
from normjax.study.claims import Claim


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    cells = {
        ("raw", "running"): (0.0, 0),
        ("averaged", "running"): (0.98, 0),
        ("averaged", "recalibrated"): (0.98, 20),
    }
    raw, running, anew = cells
    return {
        "title": "digits: test top-1",
        "rows": "weights",
        "runs": {cell: _config(*values) for cell, values in cells.items()},
        "claims": (
            Claim(
                "Averaged weights generalise better than the last ones.",
                "SWA (Izmailov et al., 2018)",
                "better on CIFAR and ImageNet",
                anew,
                raw,
            ),
            Claim(
                "They need statistics of their own: recalibrated is no worse.",
                "SWA (Izmailov et al., 2018)",
                "a pass over the data for BatchNorm",
                anew,
                running,
                margin=0.005,
                no_less=True,
            ),
        ),
    }


def _config(decay: float, batches: int) -> Any:
    return changed(resnet(steps=300), ema_decay=decay, recalibrate_batches=batches)
