"""DeiT on ImageNet, with LayerNorm or PRepBN, and SLAB-DeiT.

    python train.py --config=configs/imagenet_deit.py:variant=slab_tiny --workdir=runs/a

Arguments: variant (a key of DROP_PATHS below), and runlocal (a small model on the
scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import Recipe, imagenet_config, is_original, shrink

DROP_PATHS = {
    "tiny": 0.1,
    "small": 0.1,
    "base": 0.1,
    "tiny_prepbn": 0.0,
    "small_prepbn": 0.0,
    "slab_tiny": 0.0,
    "slab_small": 0.0,
}


def recipe_of(variant: str) -> Recipe:
    if is_original(variant):
        return Recipe(warmup_epochs=5, repeats=3)
    return Recipe(clip_norm=5.0)


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(
        arg,
        "deit",
        "slab_tiny",
        DROP_PATHS,
        recipe_of,
        epsilon=1e-6,
        decay_steps=60_000,
    )
    if config.model.name.endswith("prepbn"):
        config.model.norm.decay_steps = 300_000
    if small:
        shrink(config, image_size=32, dim=16, depth=1, num_heads=2)
    return config
