"""LayerNorm, RMSNorm and SimpleRMSNorm in a decoder; and the first without its mean.

    python -m normjax.study simple_norms --workdir=runs/simple_norms

A byte-level decoder; and the largest difference of the logits when a Pre-LN decoder is
turned into a Pre-RMSNorm or Pre-CRMSNorm one, in float32, by the largest logit.
"""

from typing import Any

from configs.studies.common import decoder
from normjax.study.cells import Measure
from normjax.study.claims import Claim

NORMS = ("layer_norm", "rms_norm", "simple_rms_norm")
SAME = 0.03


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    layer, rms, simple = ((norm, "trained") for norm in NORMS)
    exact = Claim(
        "A Pre-LN transformer is a Pre-RMSNorm one, exactly.",
        "Pre-RMSNorm and Pre-CRMSNorm (Jiang et al., 2023)",
        "equal; 1 to 10 % less time",
        1e-5,
        ("rms_norm", "converted"),
        metric="difference",
    )
    return {
        "title": "pytext: bits per byte",
        "rows": "norm",
        "metric": "bits_per_byte",
        "percent": False,
        "runs": {
            **{(norm, "trained"): decoder(f"norm={norm}") for norm in NORMS},
            ("rms_norm", "converted"): Measure(
                "pre_norm_conversion", {"norm": "rms_norm"}
            ),
            ("crms_norm", "converted"): Measure(
                "pre_norm_conversion", {"norm": "crms_norm"}
            ),
        },
        "claims": (
            Claim(
                "RMSNorm does as well as LayerNorm.",
                "RMSNorm (Zhang & Sennrich, 2019)",
                "comparable, 7 to 64 % less time",
                layer,
                rms,
                margin=SAME,
                no_less=True,
            ),
            Claim(
                "SimpleRMSNorm, which learns nothing, loses nothing.",
                "TransNormerLLM (Qin et al., 2023)",
                "no loss of quality",
                rms,
                simple,
                margin=SAME,
                no_less=True,
            ),
            exact,
            exact._replace(
                statement="And a Pre-CRMSNorm one, with a channel less.",
                less=("crms_norm", "converted"),
            ),
        ),
    }
