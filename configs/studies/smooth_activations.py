"""Reproducibility: two runs whose weights at the start differ in one bit.

    python -m normjax.study smooth_activations --workdir=runs/smooth_activations

A residual network on scanned digits without norms' noise in the data: the same batches
in the same order. *Disagreement*: test images on whose class the two runs differ, and
the mean |difference| of the largest probability.
"""

from typing import Any

from configs.studies.common import resnet
from normjax.study.cells import Measure
from normjax.study.claims import Claim

SOURCE = "SmeLU (Shamir et al., 2022)"
ACTIVATIONS = ("relu", "smelu", "gelu")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    relu, smelu, gelu = ((name, "ResNet") for name in ACTIVATIONS)
    return {
        "title": "digits: mean difference of the predictions of two runs",
        "rows": "activation",
        "metric": "difference",
        "percent": False,
        "runs": {
            (name, "ResNet"): Measure(
                "one_bit", {"config": resnet(steps=150, activation=name)}
            )
            for name in ACTIVATIONS
        },
        "claims": (
            Claim(
                "SmeLU's runs agree more than ReLU's.",
                SOURCE,
                "a third to a half less prediction difference",
                relu,
                smelu,
            ),
            Claim(
                "GELU's too.",
                SOURCE,
                "smooth activations all do",
                relu,
                gelu,
            ),
        ),
    }
