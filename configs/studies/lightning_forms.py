"""Lightning attention's three forms: the same numbers, and what they cost.

    python -m normjax.study lightning_forms --workdir=runs/lightning_forms

Decayed linear attention of 2 heads with 32 channels, float32; step by step, in one
block, and in blocks. *Error*: largest difference from float64, by the largest value.
*Slope*: exponent p of time ~ tokens^p from 1,024 to 4,096 tokens.
"""

from typing import Any

from normjax.study.cells import Measure
from normjax.study.claims import Claim

FORMS = ("recurrent", "parallel", "chunked")
SOURCE = "Lightning Attention-2 (Qin et al., 2024)"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "lightning attention: error in float32, and slope of time",
        "rows": "form",
        "metric": "error",
        "percent": False,
        "runs": {
            (form, "float32"): Measure("decay_form", {"form": form}) for form in FORMS
        },
        "claims": (
            *(
                Claim(
                    f"The {form} form gives the same numbers.",
                    SOURCE,
                    "equal by algebra",
                    1e-5,
                    (form, "float32"),
                )
                for form in FORMS
            ),
            Claim(
                "In blocks, time grows as the tokens do.",
                SOURCE,
                "constant speed for any length",
                1.25,
                ("chunked", "float32"),
                metric="slope",
            ),
            Claim(
                "In one block it grows faster than in many.",
                SOURCE,
                "O(n^2 d) beside O(n d^2)",
                ("parallel", "float32"),
                ("chunked", "float32"),
                metric="slope",
            ),
        ),
    }
