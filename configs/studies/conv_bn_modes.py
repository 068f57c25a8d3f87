"""A frozen BatchNorm behind a convolution: evaluated, merged in each step, or for good.

    python -m normjax.study conv_bn_modes --workdir=runs/conv_bn_modes

ResNet-18 at 64 pixels, 8 images, loss and gradients in float32; memory of the compiled
step's temporaries and its time, beside those of mode eval.
"""

from typing import Any

from normjax.study.cells import Measure
from normjax.study.claims import Claim

SOURCE = "Tune mode of ConvBN (You et al., 2023)"


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "memory of a step / mode eval",
        "rows": "mode",
        "metric": "memory",
        "percent": False,
        "runs": {("tune", "ResNet-18"): Measure("conv_bn_tune")},
        "claims": (
            Claim(
                "Tune takes less memory than eval.",
                SOURCE,
                "less memory in transfer learning",
                1.0,
                ("tune", "ResNet-18"),
            ),
            Claim(
                "Tune takes less time than eval.",
                SOURCE,
                "less time in transfer learning (GPU)",
                1.0,
                ("tune", "ResNet-18"),
                metric="time",
            ),
        ),
    }
