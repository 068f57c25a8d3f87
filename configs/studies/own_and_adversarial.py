"""Own predictions and adversarial examples beside plain training.

    python -m normjax.study own_and_adversarial --workdir=runs/own_and_adversarial

A residual network of 1 and 1 blocks on scanned digits, 300 updates of 64 images,
without label smoothing: plainly; by PS-KD, whose targets are in the end 0.8 what the
network said an epoch before; and by ConAdv, with adversarial examples of a targeted
step within 0.1, 4 % of the range of a pixel. Neither number was chosen here.
"""

from typing import Any

from configs.studies.common import changed, resnet

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "PS-KD": {"self_distill__weight": 0.8},
    "ConAdv": {"adversarial__epsilon": 0.1},
}
IMAGES = {"100 images": "train[:100]", "all images": "train"}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: negative log-likelihood of test images",
        "rows": "targets",
        "metric": "nll",
        "percent": False,
        "runs": {
            (kind, images): changed(
                resnet(steps=300, depths=(1, 1)),
                data__label_smoothing=0.0,
                data__train_split=split,
                **fields,
            )
            for images, split in IMAGES.items()
            for kind, fields in KINDS.items()
        },
    }
