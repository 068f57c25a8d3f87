"""Where the norms sit: variance and gradients by depth.

    python -m normjax.study placements_depth --workdir=runs/placements_depth

A byte-level decoder of 8 layers of width 48 with LayerNorm. *Growth* is the variance of
the residual stream behind the last block, by that behind the first.
"""

from typing import Any

from configs.studies.common import decoder
from normjax.study.cells import Measure
from normjax.study.claims import Claim

PLACEMENTS = ("pre", "post", "scaled", "mix", "peri")
VARIANCE = "activation_variance"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    pre, scaled = ("pre", "pytext"), ("scaled", "pytext")
    return {
        "title": "pytext: bits per byte by the placement of norms",
        "rows": "placement",
        "metric": "bits_per_byte",
        "percent": False,
        "layers": VARIANCE,
        "runs": {(placement, "pytext"): _cell(placement) for placement in PLACEMENTS},
        "claims": (
            Claim(
                "LayerNorm Scaling keeps the variance from growing with depth.",
                "LayerNorm Scaling (Sun et al., 2025)",
                "variance of Pre-LN grows exponentially",
                pre,
                scaled,
                metric=f"{VARIANCE}_growth",
            ),
            Claim(
                "LayerNorm Scaling ends with a lower loss than Pre-LN.",
                "LayerNorm Scaling (Sun et al., 2025)",
                "LLaMA-130M: perplexity 26.73 to 25.76",
                pre,
                scaled,
            ),
            Claim(
                "Mix-LN ends with a lower loss than Pre-LN.",
                "Mix-LN (Li et al., 2024)",
                "LLaMA-130M: perplexity 26.73 to 26.07",
                pre,
                ("mix", "pytext"),
            ),
            Claim(
                "Peri-LN ends with a lower loss than Pre-LN.",
                "Peri-LN (Kim et al., 2025)",
                "lower loss at 400M to 3.2B",
                pre,
                ("peri", "pytext"),
            ),
            Claim(
                "Peri-LN lets the variance grow less than Pre-LN.",
                "Peri-LN (Kim et al., 2025)",
                "linear growth, exponential for Pre-LN",
                pre,
                ("peri", "pytext"),
                metric=f"{VARIANCE}_last",
            ),
            Claim(
                "Post-LN trains worse than Pre-LN at the same learning rate.",
                "Xiong et al., 2020",
                "Post-LN needs a warm-up",
                ("post", "pytext"),
                pre,
            ),
        ),
    }


def _cell(placement: str) -> Any:
    arg = f"norm=layer_norm,placement={placement}"
    config = decoder(arg, steps=300, depth=8, dim=48, mlp_hidden=128)
    config.diagnostics_every = 300
    return Measure("last_layers", {"quantity": VARIANCE}, config)
