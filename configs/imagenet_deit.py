"""DeiT on ImageNet, with LayerNorm or PRepBN, and SLAB-DeiT.

    python train.py --config=configs/imagenet_deit.py:variant=slab_tiny --workdir=runs/a

Arguments: variant (a recipe of `normjax.families.deit`), and runlocal (a small model
on the scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import imagenet_config, shrink
from normjax.families.deit import DEIT


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(arg, DEIT, "slab_tiny")
    if small:
        shrink(config, image_size=32, dim=16, depth=1, num_heads=2)
    return config
