"""The ImageNet configs against the recipes as their authors published them.

Columns: batch size of all devices, learning rate, epochs of warm-up, last over largest
rate, clipping (0: none), stochastic depth, copies of repeated augmentation, decay of
the averaged weights that the accuracy is of (0: none).

Sources: the defaults of `main.py` of DeiT and PVT with PVT's `configs/pvt`, `config.py`
of Swin, the commands in CSwin's README, and `cfgs/*.yaml` over `config.py` of SLAB and
FLatten, on 8 GPUs as their READMEs say; rates are scaled by batch / 512 there.
"""

import importlib

import pytest

from configs import digit_lines, finetune
from normjax.families import FAMILIES

# fmt: off
PUBLISHED = {
    ("deit", "tiny"):           (1024, 1e-3, 5, 1e-2, 0, 0.1, 3, 0),
    ("deit", "small"):          (1024, 1e-3, 5, 1e-2, 0, 0.1, 3, 0),
    ("deit", "base"):           (1024, 1e-3, 5, 1e-2, 0, 0.1, 3, 0),
    ("deit", "tiny_prepbn"):    (1024, 1e-3, 20, 1e-2, 5, 0.0, 1, 0),
    ("deit", "small_prepbn"):   (1024, 1e-3, 20, 1e-2, 5, 0.0, 1, 0),
    ("deit", "slab_tiny"):      (1024, 1e-3, 20, 1e-2, 5, 0.0, 1, 0),
    ("deit", "slab_small"):     (1024, 1e-3, 20, 1e-2, 5, 0.0, 1, 0),
    ("swin", "tiny"):           (1024, 1e-3, 20, 1e-2, 5, 0.2, 1, 0),
    ("swin", "small"):          (1024, 1e-3, 20, 1e-2, 5, 0.3, 1, 0),
    ("swin", "base"):           (1024, 1e-3, 20, 1e-2, 5, 0.5, 1, 0),
    ("swin", "tiny_prepbn"):    (1024, 1e-3, 20, 1e-2, 5, 0.1, 1, 0),
    ("swin", "slab_tiny"):      (1024, 1e-3, 20, 1e-2, 5, 0.2, 1, 0),
    ("swin", "slab_small"):     (1024, 1e-3, 20, 1e-2, 5, 0.3, 1, 0),
    ("swin", "slab_base"):      (512, 5e-4, 20, 1e-2, 5, 0.5, 1, 0),
    ("swin", "flatten_tiny"):   (1024, 1e-3, 20, 1e-2, 5, 0.2, 1, 0),
    ("swin", "flatten_small"):  (1024, 1e-3, 20, 1e-2, 5, 0.3, 1, 0),
    ("swin", "flatten_base"):   (512, 5e-4, 20, 1e-2, 5, 0.5, 1, 0),
    ("pvt", "tiny"):            (1024, 1e-3, 5, 1e-2, 0, 0.1, 3, 0),
    ("pvt", "small"):           (1024, 1e-3, 5, 1e-2, 0, 0.1, 3, 0),
    ("pvt", "medium"):          (1024, 1e-3, 5, 1e-2, 1, 0.3, 3, 0),
    ("pvt", "large"):           (1024, 1e-3, 5, 1e-2, 1, 0.3, 3, 0),
    ("pvt", "tiny_prepbn"):     (1024, 1e-3, 5, 2e-2, 0, 0.0, 1, 0),
    ("pvt", "small_prepbn"):    (512, 5e-4, 5, 2e-2, 0, 0.1, 1, 0),
    ("pvt", "medium_prepbn"):   (1024, 1e-3, 5, 2e-2, 1, 0.3, 1, 0),
    ("pvt", "slab_tiny"):       (1024, 1e-3, 5, 2e-2, 0, 0.0, 1, 0),
    ("pvt", "slab_small"):      (512, 5e-4, 5, 2e-2, 0, 0.1, 1, 0),
    ("pvt", "slab_medium"):     (512, 5e-4, 5, 2e-2, 1, 0.3, 1, 0),
    ("pvt", "flatten_tiny"):    (1024, 1e-3, 5, 2e-2, 0, 0.1, 1, 0),
    ("pvt", "flatten_small"):   (512, 5e-4, 5, 2e-2, 0, 0.1, 1, 0),
    ("pvt", "flatten_medium"):  (512, 5e-4, 5, 2e-2, 1, 0.3, 1, 0),
    ("pvt", "flatten_large"):   (256, 2.5e-4, 5, 2e-2, 1, 0.3, 1, 0),
    ("cswin", "tiny"):          (2048, 2e-3, 20, 5e-3, 0, 0.2, 1, 0.99984),
    ("cswin", "small"):         (2048, 2e-3, 20, 5e-3, 0, 0.4, 1, 0.99984),
    ("cswin", "slab_tiny"):     (2048, 2e-3, 20, 2e-2, 0, 0.1, 1, 0),
    ("cswin", "slab_small"):    (1024, 1e-3, 20, 2e-2, 0, 0.3, 1, 0),
    ("cswin", "flatten_tiny"):  (2048, 2e-3, 20, 2e-2, 0, 0.2, 1, 0.99984),
    ("cswin", "flatten_small"): (1024, 1e-3, 20, 2e-2, 0, 0.4, 1, 0.99984),
}
# fmt: on

SHARED = {
    "optim.name": "adamw",
    "optim.weight_decay": 0.05,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.adaptive_clip": 0.0,
    "data.label_smoothing": 0.1,
    "data.mixup_alpha": 0.8,
    "data.cutmix_alpha": 1.0,
    "data.erase_probability": 0.25,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "data.augment.image_size": 224,
    "data.augment.eval_resize": 256,
    "data.augment.resized_crop_min_scale": 0.08,
    "data.augment.flip": True,
    "data.augment.crop_padding": 0,
    # rand-m9-mstd0.5-inc1 is of a scale of 10, ours of 30.
    "data.augment.rand_augment_set": "increasing",
    "data.augment.rand_augment_ops": 2,
    "data.augment.rand_augment_magnitude": 27.0,
    "data.augment.rand_augment_std": 1.5,
    "model.norm.name": None,  # see below
}


# fmt: off
FINE_TUNED = {
    "poolformer_s12": 0.1, "poolformer_s36": 0.2, "poolformer_m48": 0.4,
    "davit_tiny": 0.1, "efficientmod_xxs": 0.0, "efficientmod_s": 0.02,
    "transnext_micro": 0.15, "transnext_base": 0.6,
    "gcvit_xxtiny": 0.2, "gcvit_small2": 0.35, "gcvit_large_384": 0.1,
    "tiny_vit_5m_224": 0.0, "tiny_vit_21m_224": 0.2, "tiny_vit_21m_512": 0.1,
    "dm_nfnet_f0": 0.1 * 11 / 12, "dm_nfnet_f6": 0.1 * 83 / 84,
    "cct_14_7x2_224": 0.1, "contracon_cct6": 0.1, "t2t_vit_7": 0.1,
    "vig_tiny": 0.0, "vig_base": 0.5, "vig_h_tiny": 0.2, "vig_h_base": 0.6,
    "stvit_small": 0.1, "stvit_base": 0.4, "stvit_large": 0.6,
    "ravlt_s": 0.15, "ravlt_l": 0.55, "iformer_small": 0.2, "iformer_large": 0.5,
    "favit_b0": 0.1, "sgformer_s": 0.1, "sgformer_b": 0.4, "raft_mlp_s": 0.1,
    "ms_mlp_t": 0.1, "ms_mlp_b": 0.5, "fcaformer_l1": 0.0, "fcaformer_l4": 0.4,
    "groupmamba_base": 0.05, "deit_tiny": 0.1, "slab_deit_tiny": 0.0,
    "swin_base": 0.5, "slab_swin_tiny": 0.2, "pvt_large": 0.3, "cswin_small": 0.4,
}
# fmt: on
"""Stochastic depth in the published training runs, by preset."""


def config_of(family, variant):
    module = importlib.import_module(f"configs.imagenet_{family}")
    return module.get_config(f"variant={variant}")


@pytest.mark.parametrize(("family", "variant"), PUBLISHED)
def test_a_recipe_is_as_published(family, variant):
    config = config_of(family, variant)
    batch, rate, warmup, last, clip, drop, repeats, ema = PUBLISHED[family, variant]
    steps = 300 * (1_281_167 // batch)
    found = {
        "batch": config.batch_size,
        "rate": config.optim.lr,
        "warmup": config.optim.warmup_fraction * 300,
        "last": config.optim.final_lr_fraction,
        "clip": config.optim.clip_norm,
        "drop": config.model.drop_path_rate,
        "repeats": config.data.repeats,
        "ema": config.ema_decay,
        "steps": config.total_steps,
    }
    expected = dict(
        zip(
            found,
            (batch, rate, warmup, last, clip, drop, repeats, ema, steps),
            strict=True,
        )
    )
    assert found == pytest.approx(expected)
    batch_norm = variant.startswith("slab") or variant.endswith("prepbn")
    shared = {**SHARED, "model.norm.name": "prepbn" if batch_norm else "layer_norm"}
    for field, value in shared.items():
        node = config
        for name in field.split("."):
            node = node[name]
        assert node == value, field
    passes = config.recalibrate_batches / (1_281_167 // batch)
    assert passes == (10 if batch_norm else 0)


def test_every_variant_is_in_the_table_or_was_never_published():
    never = {("swin", "small_prepbn"), ("swin", "base_prepbn"), ("pvt", "large_prepbn")}
    never |= {
        ("pvt", "slab_large"),
        ("cswin", "tiny_prepbn"),
        ("cswin", "small_prepbn"),
    }
    # Those were trained beside a teacher.
    never |= {("deit", f"{size}_distilled") for size in ("tiny", "small", "base")}
    variants = {
        (family, variant)
        for family in ("deit", "swin", "pvt", "cswin")
        for variant in FAMILIES[family].recipes
    }
    assert variants == PUBLISHED.keys() | never


@pytest.mark.parametrize(("preset", "rate"), FINE_TUNED.items())
def test_fine_tuning_has_the_published_stochastic_depth(preset, rate):
    def drop_path(more=""):
        model = finetune.get_config(f"{preset},path=DIR{more}").model
        return model.get("drop_path_rate", 0.0)

    assert drop_path() == drop_path(",train=norms") == pytest.approx(rate)
    assert drop_path(",train=head") == 0  # whose features are those of evaluation


def test_recipes_are_of_presets():
    for family in FAMILIES.values():
        presets = {family.preset_of(variant) for variant in family.recipes}
        assert presets <= family.presets.keys(), family.name


def test_lines_have_the_published_stochastic_depth():
    assert digit_lines.get_config("variant=sviptr_v1_l").model.drop_path_rate == 0.1
