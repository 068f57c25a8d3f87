"""The rank of attention maps, and what restores that of linear attention.

    python -m normjax.study linear_rank --workdir=runs/linear_rank

The map from values to outputs of one head with 32 channels over 14 x 14 tokens, drawn
at random: its numerical rank, singular values above 1e-4 of the largest, as a share of
the 196 tokens. In float64.
"""

from typing import Any

from normjax.study.cells import Measure
from normjax.study.claims import Claim

SIDE, CHANNELS = 14, 32
MAPS = ("softmax", "linear", "linear + depthwise convolution")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    softmax, linear, repaired = ((name, "rank") for name in MAPS)
    return {
        "title": "rank of an attention map / tokens",
        "rows": "attention",
        "metric": "rank",
        "runs": {
            (name, "rank"): Measure("attention_rank", {"attention": name})
            for name in MAPS
        },
        "claims": (
            Claim(
                "The map of linear attention has at most the rank of its channels.",
                "FLatten (Han et al., 2023)",
                "at most the channels of a head",
                CHANNELS / SIDE**2 + 1e-9,
                linear,
            ),
            Claim(
                "Softmax attention has more.",
                "FLatten (Han et al., 2023)",
                "full rank",
                softmax,
                linear,
            ),
            Claim(
                "A depthwise convolution of the values restores full rank.",
                "FLatten (Han et al., 2023)",
                "full rank",
                repaired,
                1.0,
                margin=0.02,
                no_less=True,
            ),
        ),
    }
