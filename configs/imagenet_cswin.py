"""CSwin on ImageNet, with LayerNorm or PRepBN, SLAB-CSwin and FLatten-CSwin.

    python train.py --config=configs/imagenet_cswin.py:variant=tiny --workdir=runs/a

Arguments: variant (a key of DROP_PATHS below), and runlocal (a small model on the
scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import Recipe, imagenet_config, is_original, shrink

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


def recipe_of(variant: str) -> Recipe:
    averaged = 0.0 if variant.startswith("slab") or "prepbn" in variant else 0.99984
    recipe = Recipe(batch_size=2048, ema_decay=averaged)
    if is_original(variant):
        return recipe._replace(final_lr_fraction=0.005)
    halved = {"batch_size": 1024} if "small" in variant else {}
    return recipe._replace(final_lr_fraction=0.02, **halved)


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(
        arg,
        "cswin",
        "slab_tiny",
        DROP_PATHS,
        recipe_of,
        epsilon=1e-5,
        decay_steps=120_000,
    )
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=32, num_heads=(2, 2, 2, 2), **sizes)
    return config
