"""Swin on ImageNet, with LayerNorm or PRepBN, SLAB-Swin and FLatten-Swin.

    python train.py --config=configs/imagenet_swin.py:variant=slab_tiny --workdir=runs/a

Arguments: variant (a recipe of `normjax.families.swin`), and runlocal (a small model
on the scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import imagenet_config, shrink
from normjax.families.swin import SWIN


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(arg, SWIN, "slab_tiny")
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=224, num_heads=(1, 1, 2, 2), **sizes)
    return config
