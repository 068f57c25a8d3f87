"""Linear cores in the parts of maps that published networks attend to."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from normjax.config.overrides import override, split
from normjax.config.recipes import load_config
from normjax.core.errors import UserError
from normjax.families import FAMILIES
from normjax.train.experiment import build_model

TAKE = (
    *("swin_tiny", "cswin_tiny", "pvt_tiny", "davit_tiny", "efficientmod_xxs"),
    *("gcvit_xxtiny", "tiny_vit_5m_224", "halonet26t", "stvit_small", "iformer_small"),
    *("favit_b0", "sgformer_s"),
)
"""The smallest of each family with a part of maps that any core attends to."""
REFUSE = {
    "unknown field of config.model.mixer": (
        *("deit_tiny", "poolformer_s12", "transnext_micro", "cct_14_7x2_224"),
        *("t2t_vit_7", "vig_tiny", "ravlt_t", "contracon_cct6", "illama_tiny"),
        *("widenet_base", "raft_mlp_s", "ms_mlp_t", "fcaformer_l1", "groupmamba_tiny"),
        *("ulsam_mobilenet_v1",),
    ),
    "config.model.mixer is a value": ("resnet18", "mobilenet_v1"),
    "unknown field of config.model: 'mixer'": ("dm_nfnet_f0", "osnet_x1_0"),
}


def config_of(preset, core):
    _, overrides = split([f"--config.model.mixer[*].core={core}"])
    return override(load_config(f"configs/finetune.py:{preset},path=DIR"), overrides)


def parameters(config, size):
    """Shapes by name, behind a pass over images of this size."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    model = build_model(config, num_classes=5)
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert logits.shape == (1, 5)
    return {k: p.shape for k, p in flatten_dict(variables["params"], sep="/").items()}


@pytest.mark.parametrize(
    "preset",
    [
        name if name == "swin_tiny" else pytest.param(name, marks=pytest.mark.slow)
        for name in TAKE
    ],
)
def test_any_core_attends_in_the_parts_of_a_map(preset):
    size = load_config(f"configs/finetune.py:{preset},path=X").data.augment.image_size
    sla, focused = (
        parameters(config_of(preset, core), size) for core in ("sla", "focused_linear")
    )
    # Of every focused core the scales, beside the convolutions that both have.
    scales = focused.keys() - sla.keys()
    assert scales and not sla.keys() - focused.keys()
    assert {name.rpartition("/")[2] for name in scales} == {"scale"}
    assert all(name.removesuffix("scale") + "dwc_kernel" in sla for name in scales)


@pytest.mark.parametrize(
    ("preset", "message"),
    [(name, message) for message, names in REFUSE.items() for name in names],
)
def test_other_mixers_refuse_a_core_in_one_line(preset, message):
    with pytest.raises(UserError) as caught:
        config_of(preset, "sla")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_family_of_images_is_one_of_the_two():
    refused = (name for names in REFUSE.values() for name in names)
    known = {*TAKE, *refused}
    for family in FAMILIES.values():
        if family.kind == "images":
            assert known & family.presets.keys(), family.name
