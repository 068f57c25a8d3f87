"""PVT on ImageNet, with LayerNorm or PRepBN, SLAB-PVT and FLatten-PVT.

    python train.py --config=configs/imagenet_pvt.py:variant=slab_tiny --workdir=runs/a

Arguments: variant (a key of DROP_PATHS below), and runlocal (a small model on the
scanned digits, 20 steps).
"""

from ml_collections import ConfigDict

from configs.imagenet import Recipe, imagenet_config, is_original, shrink

_SIZES = {"tiny": 0.0, "small": 0.1, "medium": 0.3, "large": 0.3}
DROP_PATHS = {
    **_SIZES,
    "tiny": 0.1,
    **{f"{size}_prepbn": rate for size, rate in _SIZES.items()},
    **{f"slab_{size}": rate for size, rate in _SIZES.items()},
    **{f"flatten_{size}": rate for size, rate in _SIZES.items()},
    "flatten_tiny": 0.1,
}


BATCH_SIZES = {
    **{f"{kind}_{size}": 512 for kind in ("slab", "flatten") for size in _SIZES},
    **{"slab_tiny": 1024, "flatten_tiny": 1024, "flatten_large": 256},
    "small_prepbn": 512,
}
"""Of variants that are trained with another one than 1024."""


def recipe_of(variant: str) -> Recipe:
    deep = "medium" in variant or "large" in variant
    recipe = Recipe(warmup_epochs=5, clip_norm=1.0 if deep else 0.0)
    if is_original(variant):
        return recipe._replace(repeats=3)
    batch_size = BATCH_SIZES.get(variant, 1024)
    return recipe._replace(batch_size=batch_size, final_lr_fraction=0.02)


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    config, small = imagenet_config(
        arg,
        "pvt",
        "slab_tiny",
        DROP_PATHS,
        recipe_of,
        epsilon=1e-6,
        decay_steps=300_000,
    )
    if small:
        sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        shrink(config, image_size=32, num_heads=(1, 1, 2, 2), **sizes)
    return config
