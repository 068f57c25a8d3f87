"""What the ImageNet recipes share: 300 epochs of AdamW with DeiT's augmentation.

Those of LayerNorm are DeiT's (Touvron et al., 2021), Swin's, PVT's and CSwin's own, the
others those of the released code of SLAB and FLatten. As published but for the ten
epochs at the lowest rate behind PVT and CSwin, CSwin's random choice between bilinear
and bicubic, and steps per epoch that differ by the last batch. DeiT keeps an average of
its weights, too, but reports the accuracy of the weights. Statistics of PRepBN are
re-estimated over ten passes at the end, as in SLAB.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import image_config, parse_arg
from normjax.core.errors import UserError, one_of
from normjax.families import Family

EPOCHS, IMAGES = 300, 1_281_167


def imagenet_config(arg: str | None, family: Family, default: str) -> tuple[Any, bool]:
    """The run that `arg` asks for, and whether it is to be small.

    Args:
      arg: `variant=NAME`, one of the family's recipes, and `runlocal`.
      default: variant.

    Raises:
      UserError: unknown variant.
    """
    choice = parse_arg(arg, variant=default, runlocal=False)
    variant = choice["variant"]
    if variant not in family.recipes:
        raise UserError(one_of("variant", variant, family.recipes))
    recipe = family.recipes[variant]
    epoch = IMAGES // recipe.batch_size
    layer_norm = {"name": "layer_norm", "epsilon": family.epsilon}
    norm: dict[str, Any] = layer_norm
    config = image_config()
    preset = family.preset_of(variant)
    published = family.presets[preset].get("norm", layer_norm)
    if published["name"] == "prepbn":
        norm = {
            "name": "prepbn",
            "decay_steps": published["decay_steps"],
            "layer_norm": layer_norm,
            "batch_norm": {"name": "repbn", "unbiased_running_var": True},
        }
        config.recalibrate_batches = 10 * epoch
    config.model = ConfigDict(
        {"name": preset, "norm": norm, "drop_path_rate": recipe.drop_path}
    )
    config.batch_size = recipe.batch_size
    config.total_steps = EPOCHS * epoch
    config.eval_every = config.checkpoint.every = epoch
    config.optim.lr = 5e-4 * recipe.batch_size / 512
    config.optim.warmup_fraction = recipe.warmup_epochs / EPOCHS
    config.optim.final_lr_fraction = recipe.final_lr_fraction
    config.optim.clip_norm = recipe.clip_norm
    config.ema_decay = recipe.ema_decay
    _imagenet(config.data)
    config.data.repeats = recipe.repeats
    return config, choice["runlocal"]


def _imagenet(data: Any) -> None:
    data.name = "imagenet2012"
    data.eval_split = "validation"
    data.mean = (0.485, 0.456, 0.406)
    data.std = (0.229, 0.224, 0.225)
    data.label_smoothing = 0.1
    data.mixup_alpha = 0.8
    data.cutmix_alpha = 1.0
    data.erase_probability = 0.25
    data.augment.update(
        image_size=224,
        eval_resize=256,
        resized_crop_min_scale=0.08,
        flip=True,
        rand_augment_ops=2,  # timm's rand-m9-mstd0.5-inc1
        rand_augment_set="increasing",
        rand_augment_magnitude=27.0,
        rand_augment_std=1.5,
    )


def shrink(config: Any, *, image_size: int, **model: Any) -> None:
    """Make a run of two minutes at most of it: a small model on the scanned digits."""
    config.data.update(name="digits", eval_split="test", mean=(0.5,), std=(0.5,))
    config.data.update(erase_probability=0.0, repeats=1)
    config.ema_decay = 0.0
    config.data.augment.update(
        image_size=image_size, eval_resize=0, rand_augment_ops=0, flip=False
    )
    config.batch_size, config.total_steps = 16, 20
    config.eval_every = config.checkpoint.every = 10
    if config.recalibrate_batches:
        config.recalibrate_batches = 2
        config.model.norm.decay_steps = 16
    config.model.update(model)
