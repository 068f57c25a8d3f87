"""Half of the heads, chosen by token (MoH), against all of them.

    python -m normjax.study mixture_of_head --workdir=runs/mixture_of_head

A vision transformer of width 64 with 8 heads on scanned digits; MoH shares 2 heads and
takes 2 of the other 6.
"""

from typing import Any

from configs.studies.common import changed, vit
from normjax.study.claims import Claim

WIDE: dict[str, Any] = {"dim": 64, "num_heads": 8}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: test top-1",
        "rows": "attention",
        "runs": {
            ("softmax, 8 heads", "ViT"): vit(**WIDE),
            ("MoH, 4 of 8", "ViT"): _mixture(),
        },
        "claims": (
            Claim(
                "With half of the heads MoH does as well as attention with all.",
                "MoH (Jin et al., 2024)",
                "50 to 90 % of the heads do",
                ("MoH, 4 of 8", "ViT"),
                ("softmax, 8 heads", "ViT"),
                margin=0.015,
                no_less=True,
            ),
        ),
    }


def _mixture() -> Any:
    config = changed(vit("mixer=mixture_of_head", **WIDE), auxiliary_loss_weight=0.01)
    config.model.mixer.update({"shared_heads": 2, "active_heads": 2})
    return config
