"""PVT on ImageNet, with LayerNorm or PRepBN, SLAB-PVT and FLatten-PVT.

    python train.py --config=configs/imagenet_pvt.py:variant=slab_tiny --workdir=runs/a

Arguments: variant (a recipe of `normjax.families.pvt`), and runlocal (a small model
on the scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import imagenet_config, shrink
from normjax.families.pvt import PVT


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(arg, PVT, "slab_tiny")
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=32, num_heads=(1, 1, 2, 2), **sizes)
    return config
