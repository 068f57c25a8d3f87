"""Pyramids: published sizes, any mixer and norm, folding, what they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models
from normjax.core.errors import UserError
from normjax.families import FAMILIES
from normjax.mixers import MIXERS
from normjax.models import PRESETS, stems
from normjax.norms import NORMS
from tests.mixers.small import small

TINY = {
    "num_classes": 3,
    "depths": (1, 2),
    "dims": (8, 16),
    "num_heads": (2, 2),
    "mlp_ratio": 2.0,
    "stem": {"name": "conv_norm", "kernel_size": 2, "stride": 2},
    "mixer": {"name": "window", "window_size": 2},
}


def tiny(**changes):
    return models.build("pyramid", **{**TINY, **changes})


def abstract(model, side, channels=3):
    init = functools.partial(model.init, train=False)
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return jax.eval_shape(init, jax.random.key(0), images)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


SLOW = pytest.mark.slow


def test_every_preset_has_a_published_size():
    published = {name for family in FAMILIES.values() for name in family.figures}
    assert {k for k, v in PRESETS.items() if v["name"] == "pyramid"} <= published


def test_parameter_count_with_plain_repbn():
    model = models.build("swin_tiny", norm="repbn", num_classes=1000)
    assert count(abstract(model, 224)["params"]) == 28_288_383


@pytest.mark.parametrize("host", ["pyramid", pytest.param("vit", marks=SLOW)])
@pytest.mark.parametrize("mixer", [e.name for e in MIXERS if "grid" in e.tags])
def test_any_mixer_of_maps_is_one_argument_of_both_models(mixer, host):
    spec = {"name": mixer, **small(mixer)}
    if host == "pyramid":
        model = tiny(mixer=spec)
    else:
        patches = {"name": "patch", "patch_size": 2}
        geometry = {"num_classes": 3, "dim": 8, "depth": 2, "num_heads": 2}
        model = models.build("vit", mixer=spec, stem=patches, pool="mean", **geometry)
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)


@pytest.mark.parametrize("norm", [e.name for e in NORMS if "grid" in e.tags])
def test_any_norm_of_maps_is_one_argument(norm):
    needed = {"decay_steps": 3, "num_tasks": 2, "num_groups": 2}
    fields = NORMS[norm].make.__dataclass_fields__
    spec = {"name": norm, **{k: v for k, v in needed.items() if k in fields}}
    model = tiny(norm=spec, mixer={"name": "spatial_reduction", "sr_ratio": 2})
    assert count(abstract(model, 8)["params"]) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"pos_embed": True, "pool": "cls", "mixer": ("pooling", "softmax")},
        pytest.param(
            {"dtype": jnp.bfloat16, "norm": "repbn", "drop_path_rate": 0.5}, marks=SLOW
        ),
        pytest.param({"placement": "peri", "remat": True}, marks=pytest.mark.slow),
        pytest.param(
            {"mlp": "depthwise_mlp", "mlp_ratio": (1.0, 3.0)}, marks=pytest.mark.slow
        ),
    ],
)
def test_training_changes_every_parameter(changes):
    """Gradients reach all parameters, states and logits keep their types."""
    model = tiny(depths=(1, 1), **changes)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def loss(params):
        logits, new = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        return jnp.sum(logits**2), (logits, new)

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    gradients, (logits, new) = gradient(variables["params"])
    assert (logits.shape, logits.dtype) == ((4, 3), jnp.float32)
    chex.assert_tree_all_finite(gradients)
    old = {k: v for k, v in variables.items() if k == "batch_stats"}
    chex.assert_trees_all_equal_shapes_and_dtypes(dict(new), old)
    assert all(np.any(g) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixer": {"name": "spatial_reduction", "sr_ratio": 2}},
        pytest.param(
            {"mixer": {"name": "linear_spatial_reduction", "pool_size": 3}}, marks=SLOW
        ),
        pytest.param(
            {"mixer": {"name": "cross_shaped_window_sla", "split_size": 2}}, marks=SLOW
        ),
        {"merge": {"name": "conv_norm", "kernel_size": 3, "stride": 2, "padding": 1}},
    ],
)
def test_folding_leaves_no_norm_and_changes_no_logit(changes):
    model = tiny(norm="repbn", **changes)
    rng = np.random.default_rng(3)
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.uniform(0.5, 1.5, s.shape), s.dtype),
        abstract(model, 8),
    )
    images = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    assert not [f.path for f in fusion.plan(model, variables) if f.reason]
    folded, folded_variables = fusion.fold(model, variables)
    assert set(folded_variables) == {"params"}
    expected = jax.jit(model.apply)(variables, images)
    actual = jax.jit(folded.apply)(folded_variables, images)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_pooling_keeps_the_norm_before_it():
    model = tiny(norm="repbn", mixer="pooling")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    verdicts = {f.path: f.reason for f in fusion.plan(model, variables)}
    assert verdicts["blocks_0_0/norm1"] == "no linear layer reads its output alone"


@pytest.mark.parametrize(
    ("changes", "side", "message"),
    [
        ({}, 9, "conv_norm: a map of 9x9 does not divide by 2"),
        ({}, 10, "windows of 2x2 do not cover a grid of 5x5"),
        ({"mixer": "pooling"}, 6, "patch_merge: a map of 3x3 does not divide by 2"),
        ({"mixer": ("sla", "sla", "sla")}, 8, "3 values for 2 stages"),
        ({"mixer": ("sla", "slab")}, 8, "unknown mixer 'slab'; did you mean 'sla'"),
        ({"pool": "cls"}, 8, "mixer 'window' does not accept seq input"),
        ({"pool": "max"}, 8, "pool 'max' is none of mean, cls"),
        ({"num_heads": (2,)}, 8, "are not of one length"),
        ({"merge": "patch_mrge"}, 8, "unknown stem 'patch_mrge'; did you mean"),
        ({"mlp": "depthwise"}, 8, "unknown mlp 'depthwise'; did you mean"),
    ],
)
def test_errors(changes, side, message):
    with pytest.raises(UserError) as caught:
        abstract(tiny(**changes), side)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_tables_made_for_images_of_another_size():
    model = tiny(pos_embed=True, mixer="pooling")
    variables = abstract(model, 8)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    with pytest.raises(UserError, match=r"initialised with a table of positions of"):
        jax.eval_shape(model.apply, variables, images)


def test_windows_take_every_size_that_they_divide():
    model = tiny()
    variables = abstract(model, 8)
    for shape in ((8, 16), (24, 8)):
        images = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, images).shape == (1, 3)


@pytest.mark.parametrize("form", [stems._corners, stems._corners_of_slices])
def test_corners_stand_side_by_side(form):
    x = np.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    y = np.asarray(form(jnp.asarray(x)))
    for row, column in np.ndindex(2, 3):
        for place, (i, j) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
            corner = y[:, row, column, 3 * place : 3 * place + 3]
            np.testing.assert_array_equal(corner, x[:, 2 * row + i, 2 * column + j])
