"""sigmaReparam at learning rates at which plain attention breaks down.

    python -m normjax.study sigma_reparam --workdir=runs/sigma_reparam

A vision transformer of 4 layers on scanned digits without warm-up, weight decay or
clipping. *Entropy*: of the attention, mean over layers, in nats, at the end.
"""

from typing import Any

from configs.studies.common import STEPS, changed, vit
from normjax.study.cells import Measure
from normjax.study.claims import Claim

ENTROPY = "attention_entropy"
RATES = ("3e-3", "1e-2", "3e-2")
SOURCE = "sigmaReparam (Zhai et al., 2023)"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    plain, ours = ("plain", RATES[-1]), ("sigmaReparam", RATES[-1])
    return {
        "title": "digits: test top-1 by learning rate",
        "rows": "weights",
        "axis": "learning rate",
        "runs": {
            (row, rate): _cell(row, rate)
            for row in ("plain", "sigmaReparam")
            for rate in RATES
        },
        "claims": (
            Claim(
                "With sigmaReparam training bears a high rate without warm-up.",
                SOURCE,
                "ViT without warm-up, weight decay and LayerNorm",
                ours,
                plain,
            ),
            Claim(
                "Entropy collapses at high rates, and does not with sigmaReparam.",
                SOURCE,
                "a lower bound on the entropy by the spectral norm",
                ours,
                plain,
                metric=f"{ENTROPY}_mean",
            ),
        ),
    }


def _cell(row: str, rate: str) -> Any:
    config = changed(
        vit(depth=4),
        optim__lr=float(rate),
        optim__warmup_fraction=0.0,
        optim__weight_decay=0.0,
        optim__clip_norm=0.0,
        diagnostics_every=STEPS,
    )
    if row != "plain":
        config.reparam = ({"pattern": "qkv|proj|fc", "name": "sigma_reparam"},)
    return Measure("last_layers", {"quantity": ENTROPY}, config)
