"""Which parts of a network move when tasks follow each other.

    python -m normjax.study task_switches --workdir=runs/task_switches

Scanned digits two by two, 40 updates of 32 images each by SGD at a constant rate, as in
"Does Continual Learning Equally Forget All Parameters?" (Zhao et al., 2023), whose
measure was not found: this one is ours.
"""

from typing import Any

from configs.studies.common import changed, resnet, vit
from normjax.study.cells import Measure

PARTS = {
    "ViT": ("norm", "stem", "mixer", "mlp", "head"),
    "ResNet": ("norm", "conv", "head"),
}


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    constant = {
        "optim__name": "sgd",
        "optim__lr": 0.05,
        "optim__weight_decay": 0.0,
        "optim__warmup_fraction": 0.0,
        "optim__final_lr_fraction": 1.0,
        "batch_size": 32,
    }
    hosts = {"ViT": vit(steps=200), "ResNet": resnet(steps=200)}
    return {
        "title": "digits in five tasks: change behind a switch by that within tasks",
        "rows": "part",
        "metric": "switch",
        "percent": False,
        "seeds": (0,),
        "runs": {
            (part, host): Measure(
                "task_switch",
                {"config": changed(hosts[host], **constant), "part": part},
            )
            for host, parts in PARTS.items()
            for part in parts
        },
    }
