"""PRepBN: BatchNorm in a transformer by way of LayerNorm, and how long the way is.

    python -m normjax.study prepbn_decay --workdir=runs/prepbn_decay

A vision transformer of 6 layers on scanned digits at a learning rate that LayerNorm
bears well.
"""

from typing import Any

from configs.studies.common import changed, vit
from normjax.study.claims import Claim

SLAB = "SLAB (Guo et al., 2024)"
RATE = 5e-3


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    base = ("prepbn, decay 0.8", "digits")
    return {
        "title": "digits: test top-1 of a vision transformer of 6 layers",
        "rows": "norm",
        "runs": {
            ("layer_norm", "digits"): _config("layer_norm"),
            ("batch_norm", "digits"): _config("batch_norm"),
            ("repbn", "digits"): _config("repbn"),
            ("prepbn, decay 0.2", "digits"): _config("prepbn", 0.2),
            base: _config("prepbn", 0.8),
        },
        "claims": (
            Claim(
                "PRepBN trains where BatchNorm in place of LayerNorm does badly.",
                SLAB,
                "BatchNorm in its place falls behind or fails to train",
                base,
                ("batch_norm", "digits"),
            ),
            Claim(
                "PRepBN keeps the accuracy of LayerNorm.",
                SLAB,
                "as accurate as LayerNorm on DeiT, PVT and Swin, or more",
                base,
                ("layer_norm", "digits"),
                margin=0.01,
                no_less=True,
            ),
            Claim(
                "A longer decay ends better than a short one.",
                SLAB,
                "the decay lasts most of the training",
                base,
                ("prepbn, decay 0.2", "digits"),
            ),
        ),
    }


def _config(norm: str, decay: float = 0.0) -> Any:
    config = changed(vit(f"norm={norm}", depth=6), optim__lr=RATE)
    if decay:
        config.model.norm.update({"warmup_fraction": 0.0, "decay_fraction": decay})
    return config
