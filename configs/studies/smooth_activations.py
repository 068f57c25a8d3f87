"""Reproducibility: two runs of which one weight differs in one bit at the start.

    python -m normjax.study smooth_activations --workdir=runs/smooth_activations

A residual network on scanned digits at a learning rate of 0.02, the same batches in the
same order. *Difference*: mean over the test images of sum |p - p'| / 2.
"""

from typing import Any

from configs.studies.common import changed, resnet
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
            (name, "ResNet"): Measure("one_bit", {"config": _config(name)})
            for name in ACTIVATIONS
        },
        "claims": (
            Claim(
                "SmeLU's runs agree more than ReLU's.",
                SOURCE,
                "less prediction difference",
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


def _config(activation: str) -> Any:
    return changed(resnet(activation=activation), optim__lr=0.02)
