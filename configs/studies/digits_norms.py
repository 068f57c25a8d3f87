"""Every norm on scanned digits, in a vision transformer and in a ResNet.

    python -m normjax.study configs/studies/digits_norms.py --workdir=runs/digits_norms

Short runs: 300 steps of 64 digits, the same recipe for all.
"""

from typing import Any

from configs import digits

NORMS = (
    "layer_norm",
    "rms_norm",
    "simple_rms_norm",
    "crms_norm",
    "batch_norm",
    "ghost_batch_norm",
    "clamped_batch_norm",
    "filled_batch_norm",
    "repbn",
    "prepbn",
    "power_norm",
    "unified_norm",
    "adab2n",
    "batch_channel_norm",
    "group_norm",
    "instance_norm",
    "ibn_a",
    "ibn_b",
    "evonorm_b0",
    "evonorm_s0",
    "region_norm",
    "region_norm_learnable",
    "poincare_batch_norm",
    "none",
)
HOSTS = {"ViT": "mixer=sla", "ResNet": "model=resnet"}
# Norms of one example and channel leave nothing to the mean over positions that ends
# the transformer: every image would get the same logits.
NOT_IN_VIT = ("instance_norm", "ibn_b")
GROUPED = ("group_norm", "batch_channel_norm", "evonorm_s0")


def get_study() -> dict[str, Any]:
    """The fields of `normjax.study.study.Study`."""
    return {
        "title": "digits: test top-1, mean and standard deviation of 3 seeds",
        "rows": "norm",
        "runs": {
            (norm, host): _config(f"norm={norm},{arguments}")
            for norm in NORMS
            for host, arguments in HOSTS.items()
            if host != "ViT" or norm not in NOT_IN_VIT
        },
    }


def _config(arg: str) -> Any:
    config: Any = digits.get_config(arg)
    config.total_steps = 300
    config.batch_size = 64
    config.recalibrate_batches = 20
    config.eval_every = config.checkpoint.every = 300
    if config.model.name == "vit":
        config.model.depth = 2
    else:
        config.model.depths = (2, 2)
        if config.model.norm.name in GROUPED:
            config.model.norm.num_groups = 8  # of 16 or 32 channels
    return config
