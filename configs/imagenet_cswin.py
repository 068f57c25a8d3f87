"""CSwin on ImageNet, with LayerNorm or PRepBN, SLAB-CSwin and FLatten-CSwin.

    python train.py --config=configs/imagenet_cswin.py:variant=tiny --workdir=runs/a

Arguments: variant (a recipe of `normjax.families.cswin`), and runlocal (a small model
on the scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import imagenet_config, shrink
from normjax.families.cswin import CSWIN


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(arg, CSWIN, "slab_tiny")
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=32, num_heads=(2, 2, 2, 2), **sizes)
    return config
