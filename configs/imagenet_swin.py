"""Swin on ImageNet, with LayerNorm or PRepBN, SLAB-Swin and FLatten-Swin.

    python train.py --config=configs/imagenet_swin.py:variant=slab_tiny --workdir=runs/a

Arguments: variant (a key of DROP_PATHS below), and runlocal (a small model on the
scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import Recipe, imagenet_config, shrink

_SIZES = {"tiny": 0.2, "small": 0.3, "base": 0.5}
DROP_PATHS = {
    **_SIZES,
    "tiny_prepbn": 0.1,
    "small_prepbn": 0.3,
    "base_prepbn": 0.5,
    **{f"slab_{size}": rate for size, rate in _SIZES.items()},
    **{f"flatten_{size}": rate for size, rate in _SIZES.items()},
}


def recipe_of(variant: str) -> Recipe:
    halved = variant in ("slab_base", "flatten_base")
    return Recipe(batch_size=512 if halved else 1024, clip_norm=5.0)


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(
        arg,
        "swin",
        "slab_tiny",
        DROP_PATHS,
        recipe_of,
        epsilon=1e-5,
        decay_steps=60_000,
    )
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=224, num_heads=(1, 1, 2, 2), **sizes)
    return config
