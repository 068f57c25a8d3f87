"""State dicts of published families: every name and shape, there and back."""

import zlib

import jax
import numpy as np
import pytest

from normjax import convert, models
from normjax.convert.names import abstract_variables, form_of
from normjax.convert.wrappers import found
from normjax.core.errors import UserError
from normjax.families import FAMILIES

PUBLISHED = {
    "poolformer_timm": ("poolformer_s12", 132, 4191403110),
    "poolformer": ("poolformer_s12", 132, 3473595083),
    "davit_timm": ("davit_tiny", 212, 1878473888),
    "gcvit_timm": ("gcvit_xxtiny", 226, 1043196250),
    "gcvit": ("gcvit_xxtiny", 238, 2436069337),
    "tiny_vit_timm": ("tiny_vit_5m_224", 296, 649034303),
    "tiny_vit": ("tiny_vit_5m_224", 306, 2397887183),
    "nfnet_timm": ("dm_nfnet_f0", 233, 3164764837),
    "efficientmod": ("efficientmod_xxs", 209, 649817670),
    "transnext": ("transnext_micro", 617, 2288442891),
    "davit": ("davit_tiny", 212, 1585282323),
    "favit": ("favit_b0", 470, 3039513410),
    "sgformer": ("sgformer_s", 669, 652341650),
    "raft_mlp": ("raft_mlp_s", 228, 2335300057),
    "ms_mlp": ("ms_mlp_t", 506, 2407000891),
    "fcaformer": ("fcaformer_l1", 320, 1844137160),
    "groupmamba": ("groupmamba_tiny", 1266, 2624167321),
    "sviptr": ("sviptr_v2_t", 256, 2555822518),
    "cct": ("cct_14_7x2_224", 163, 397854313),
    "t2t_vit": ("t2t_vit_7", 111, 4006289737),
    "t2t_vit_t": ("t2t_vit_t_14", 184, 3965751701),
    "vig": ("vig_tiny", 180, 1726047675),
    "vig_h": ("vig_h_tiny", 200, 87720591),
    "halonet_timm": ("halonet26t", 197, 246159598),
    "stvit": ("stvit_small", 478, 3619358192),
    "ravlt": ("ravlt_t", 302, 3557016925),
    "iformer": ("iformer_small", 373, 540370425),
    "illama": ("illama_tiny", 115, 1409187087),
    "mobilenet_timm": ("ulsam_mobilenet_v2", 390, 1004189292),
    "osnet": ("osnet_x0_25", 567, 3604840671),
    "osnet_ain": ("osnet_ain_x0_25", 552, 25869413),
}
"""What the released code writes: layout -> preset, number of names, checksum of the
sorted lines "name shape"."""
FIRST = {row[0]: layout for layout, row in reversed(PUBLISHED.items())}.values()
"""One layout of each family."""
LONG = ("favit", "sgformer", "ms_mlp", "fcaformer", "groupmamba", "sviptr")
"""Of several seconds."""
LAYOUTS = [
    pytest.param(
        name, marks=() if name in FIRST and name not in LONG else pytest.mark.slow
    )
    for name in PUBLISHED
]
IMAGES = {"sviptr": ((32, 96, 3), 37)}
"""Shapes of images and numbers of classes, where they are not those of ImageNet."""


def family_with(layout):
    return next(f for f in FAMILIES.values() if layout in f.layouts)


def published_model(layout):
    """The preset in the form of the layout, and the shape of its images."""
    preset, family = PUBLISHED[layout][0], family_with(layout)
    place = list(family.layouts).index(layout)
    form = [*family.forms.values()][place] if family.forms else {}
    sides = family.figures[preset].sides if family.figures else ()
    shape, classes = IMAGES.get(layout, ((*sides, 3), 1000))
    return models.build(preset, num_classes=classes, **form), shape


def random_like(variables):
    rng = np.random.default_rng(0)

    def value(leaf):
        return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)

    return jax.tree.map(value, variables)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_and_shapes_and_back(layout):
    model, shape = published_model(layout)
    variables = random_like(abstract_variables(model, shape))
    state = convert.to_torch(model, variables, shape, layout)
    lines = sorted(f"{name} {array.shape}" for name, array in state.items())
    checksum = zlib.crc32("\n".join(lines).encode())
    assert (len(state), checksum) == PUBLISHED[layout][1:]
    wrapped = {f"module.{name}": array for name, array in state.items()}
    unwrapped = found({"model": wrapped}).state
    assert unwrapped.keys() == state.keys()
    assert not convert.reads_images(model) or convert.channels_of(state) == shape[-1]
    converted = convert.from_torch(model, unwrapped, shape)
    assert converted.layout == layout and not converted.filled
    pairs = zip(*map(jax.tree.leaves, (converted.variables, variables)), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)


def test_a_layout_of_another_form_is_refused():
    """timm's PoolFormer averages before its last norm, the authors' behind it."""
    (theirs, shape), (ours, _) = map(published_model, ("poolformer_timm", "poolformer"))
    variables = random_like(abstract_variables(ours, shape))
    state = convert.to_torch(theirs, variables, shape)
    assert "head.norm.weight" in state  # without being told
    assert form_of(FAMILIES["poolformer"], state)["pool"] == "mean_first"
    with pytest.raises(UserError, match=r"of models with config\.model\.pool"):
        convert.from_torch(ours, state, shape)
    with pytest.raises(UserError, match=r"of models with config\.model\.pool"):
        convert.to_torch(ours, variables, shape, "poolformer_timm")
