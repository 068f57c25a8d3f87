"""Training BatchNorms alone, against as many random weights.

    python -m normjax.study batch_norm_only --workdir=runs/batch_norm_only

Residual networks on scanned digits, 300 updates, by the blocks of each of their two
stages and the channels of the first. `norms`: scales and biases of all BatchNorms;
`random weights`: two entries of every output of every convolution, drawn once, which
are as many; all other weights and the classifier stay what they were at random. AdamW;
each kind at the best of the rates 0.03, 0.1 and 0.3 on the network of 1 x 16, by a
fifth of the training images that was held out, another seed.
"""

from typing import Any

from configs.studies.common import changed, resnet
from normjax.study.claims import Claim

KINDS: dict[str, dict[str, Any]] = {
    "norms": {"optim__trainable": "norm/(scale|bias)$", "optim__lr": 0.3},
    "random weights": {
        "optim__trainable": "conv/kernel$",
        "optim__transformations": ({"name": "random_entries", "per_output": 2},),
        "optim__lr": 0.1,
    },
}
SIZES: dict[str, dict[str, Any]] = {
    f"{blocks} x {channels}": {
        "depths": (blocks, blocks),
        "widths": (channels, 2 * channels),
    }
    for blocks, channels in ((1, 16), (2, 16), (1, 32))
}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: test top-1 where a part of a residual network is trained",
        "rows": "trained",
        "runs": {
            (kind, size): changed(
                resnet(steps=300, **shape), optim__weight_decay=0.0, **KINDS[kind]
            )
            for size, shape in SIZES.items()
            for kind in KINDS
        },
        "claims": tuple(
            Claim(
                f"BatchNorms alone learn more than as many random weights ({size}).",
                "Training BatchNorm and Only BatchNorm (Frankle et al., 2021)",
                "deep ResNets, CIFAR-10: 82 %, far more than as many random ones",
                ("norms", size),
                ("random weights", size),
            )
            for size in SIZES
        ),
    }
