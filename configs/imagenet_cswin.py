"""CSwin on ImageNet, with LayerNorm or PRepBN, SLAB-CSwin and FLatten-CSwin.

    python train.py --config=configs/imagenet_cswin.py:variant=tiny --workdir=runs/a

Arguments: variant (a key of DROP_PATHS below), and runlocal (a small model on the
scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import imagenet_config, shrink

DROP_PATHS = {
    "tiny": 0.2,
    "small": 0.4,
    "tiny_prepbn": 0.1,
    "small_prepbn": 0.3,
    "slab_tiny": 0.1,
    "slab_small": 0.3,
    "flatten_tiny": 0.2,
    "flatten_small": 0.4,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(
        arg,
        "cswin",
        "slab_tiny",
        DROP_PATHS,
        epsilon=1e-5,
        decay_steps=120_000,
        warmup_epochs=20,
    )
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=32, num_heads=(2, 2, 2, 2), **sizes)
    return config
