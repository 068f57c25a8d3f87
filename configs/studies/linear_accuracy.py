"""Linear attentions and softmax in the same small vision transformer.

python -m normjax.study linear_accuracy --workdir=runs/linear_accuracy
"""

from typing import Any

from configs.studies.common import vit
from normjax.study.claims import Claim

MIXERS = ("softmax", "sla", "rala", "focused_linear")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: test top-1",
        "rows": "mixer",
        "runs": {(mixer, "digits"): vit(f"mixer={mixer}") for mixer in MIXERS},
        "claims": (
            Claim(
                "Simplified linear attention loses nothing against softmax.",
                "SLAB (Guo et al., 2024)",
                "SLAB-Swin 83.6 %, 0.1 points above FLatten-Swin",
                ("sla", "digits"),
                ("softmax", "digits"),
                margin=0.01,
                no_less=True,
            ),
            Claim(
                "RALA is ahead of other linear attentions.",
                "RALA (Fan et al., 2025)",
                "84.4 % with 26 million parameters, ahead of all others",
                ("rala", "digits"),
                ("focused_linear", "digits"),
            ),
        ),
    }
