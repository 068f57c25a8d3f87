"""Sharpness-aware minimization of a vision transformer.

    python -m normjax.study sharpness --workdir=runs/sharpness

On 400 scanned digits, so that it overfits; rho = 0.05 and 0.2.
"""

from typing import Any

from configs.studies.common import changed, vit
from normjax.study.claims import Claim

FEW = "train[:400]"
RADII = {"AdamW": 0.0, "SAM, rho 0.05": 0.05, "SAM, rho 0.2": 0.2}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    plain, _, wide = ((name, "ViT") for name in RADII)
    source = "Chen, Hsieh & Gong, 2022"
    return {
        "title": "digits: test top-1",
        "rows": "optimizer",
        "runs": {
            (name, "ViT"): changed(
                vit(depth=4), optim__sam_rho=rho, data__train_split=FEW
            )
            for name, rho in RADII.items()
        },
        "claims": (
            Claim(
                "SAM lifts the accuracy of a vision transformer.",
                source,
                "ViT-B/16 on ImageNet: 5.3 points",
                wide,
                plain,
            ),
            Claim(
                "And its likelihood.",
                source,
                "a smoother loss",
                plain,
                wide,
                metric="nll",
            ),
        ),
    }
