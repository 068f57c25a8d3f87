"""Decoders on rows four times as long as those that they were trained on.

    python -m normjax.study extrapolation --workdir=runs/extrapolation

A byte-level decoder trained on 64 bytes a row; *long*: bits per byte on rows of 256.
"""

from typing import Any

from configs.studies.common import decoder
from normjax.study.cells import Measure
from normjax.study.claims import Claim

POSITIONS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "alibi": {"relative_bias": "alibi", "rotary_base": None},
    "kerple_log": {"relative_bias": "kerple_log", "rotary_base": None},
}
FACTOR = 4


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    rotary, alibi, kerple = ((name, "pytext") for name in POSITIONS)
    return {
        "title": "pytext: bits per byte on rows of 256, trained on 64",
        "rows": "positions",
        "metric": "long",
        "percent": False,
        "runs": {
            (name, "pytext"): _cell(arguments) for name, arguments in POSITIONS.items()
        },
        "claims": (
            Claim(
                "ALiBi goes on where rotary positions break down.",
                "ALiBi (Press et al., 2022)",
                "trained on 512 tokens, holds to 3,072",
                rotary,
                alibi,
            ),
            Claim(
                "KERPLE extrapolates better than ALiBi.",
                "KERPLE (Chi et al., 2022)",
                "lower perplexity from 1,024 to 16,384 tokens",
                alibi,
                kerple,
            ),
            Claim(
                "With ALiBi longer rows are no worse than those trained on.",
                "ALiBi (Press et al., 2022)",
                "perplexity falls",
                0.0,
                alibi,
                metric="loss_of_length",
            ),
        ),
    }


def _cell(arguments: dict[str, Any]) -> Measure:
    config = decoder(steps=300)
    config.model.mixer.update(arguments)
    return Measure("longer_rows", {"factor": FACTOR}, config)
