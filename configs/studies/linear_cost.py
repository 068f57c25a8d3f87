"""The cost of attention by the number of tokens: softmax and linear.

    python -m normjax.study linear_cost --workdir=runs/linear_cost

One mixer of width 64 with 2 heads, forward, float32, nothing trained. *Slope* is the
exponent p of time ~ tokens^p from 1,024 to 4,096; *ratio* is the time beside that of
softmax attention with as many tokens, in turns.
"""

from typing import Any

from normjax.study.cells import Measure
from normjax.study.claims import Claim

MIXERS = ("softmax", "sla", "rala", "focused_linear")
SIDES = (8, 16, 32, 64)


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    columns = [str(side**2) for side in SIDES]
    return {
        "title": "time of a mixer / softmax attention, by tokens",
        "rows": "mixer",
        "metric": "ratio",
        "percent": False,
        "axis": "tokens",
        "runs": {
            (mixer, column): Measure("mixer_time", {"mixer": mixer, "side": side})
            for mixer in MIXERS
            for side, column in zip(SIDES, columns, strict=True)
        },
        "claims": (
            Claim(
                "The cost of simplified linear attention grows as the tokens do.",
                "SLAB (Guo et al., 2024)",
                "O(N d^2) beside O(N^2 d)",
                1.25,
                ("sla", columns[-1]),
                metric="slope",
            ),
            Claim(
                "The cost of softmax attention grows with their square.",
                "Vaswani et al., 2017",
                "O(N^2 d)",
                ("softmax", columns[-1]),
                1.6,
                metric="slope",
            ),
            Claim(
                "With 4,096 tokens linear attention is faster than softmax.",
                "SLAB (Guo et al., 2024)",
                "2.4 ms less than FLatten-Swin (GPU)",
                1.0,
                ("sla", columns[-1]),
            ),
            Claim(
                "With 64 tokens it is not.",
                "FLatten (Han et al., 2023)",
                "linear attention pays from N > d on",
                ("sla", columns[0]),
                1.0,
            ),
        ),
    }
