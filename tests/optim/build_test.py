"""Schedules and updates against closed forms."""

import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from normjax import optim
from normjax.config.fields import default_config
from normjax.core.errors import UserError
from normjax.optim.build import EVERYWHERE, OWN, PARTS

PARAMS = {
    "head": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)},
    "norm": {"scale": jnp.full(3, 2.0)},
    "pos_embed": jnp.full((1, 4, 3), 2.0),
    "mixer": {
        "positional_encoding": jnp.full((2, 2, 3), 2.0),
        "dwc_kernel": jnp.full((5, 5, 3), 2.0),
    },
    "cls_token": jnp.full((1, 1, 3), 2.0),
}


def config(**changes):
    fields = {
        "name": "adamw",
        "lr": 0.1,
        "warmup_fraction": 0.2,
        "final_lr_fraction": 0.1,
        "weight_decay": 0.5,
        "beta1": 0.9,
        "beta2": 0.99,
        "clip_norm": 0.0,
        "trainable": ".*",
    }
    return ConfigDict({**fields, **changes})


def tree_of(value):
    return {
        k: tree_of_leaf(v, value)
        if not isinstance(v, dict)
        else {n: tree_of_leaf(x, value) for n, x in v.items()}
        for k, v in PARAMS.items()
    }


def tree_of_leaf(x, value):
    return jnp.full(x.shape, value, jnp.float32)


def first_update(transformation, gradients, params=PARAMS):
    """What it makes of the first gradients, as one program."""

    @jax.jit
    def run(gradients, params):
        return transformation.update(gradients, transformation.init(params), params)[0]

    return run(gradients, params)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_schedule(warmup):
    total, warm = 50, round(warmup * 50)
    schedule = optim.learning_rate(config(warmup_fraction=warmup), total)
    for step in range(total + 1):
        if step < warm:
            expected = 0.1 * step / warm
        else:
            done = (step - warm) / (total - warm)
            expected = 0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * done))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_decay_of_matrices_only(name):
    """With zero gradients all that moves is what decays."""
    changes = {"name": name, "warmup_fraction": 0.0}
    optimizer = optim.build(config(**changes), 10)
    updates = first_update(optimizer, tree_of(0.0))
    # Nesterov momentum applies the decay term once more, times beta1.
    moved = -0.1 * 0.5 * 2.0 * (1.9 if name == "sgd" else 1.0)
    np.testing.assert_allclose(updates["head"]["kernel"], moved, rtol=1e-5)
    np.testing.assert_allclose(updates["mixer"]["dwc_kernel"], moved, rtol=1e-5)
    for still in (
        updates["head"]["bias"],
        updates["norm"]["scale"],
        updates["pos_embed"],
        updates["mixer"]["positional_encoding"],
        updates["cls_token"],
    ):
        np.testing.assert_array_equal(still, np.zeros(still.shape))


def test_clipping_of_the_global_norm():
    changes = {"name": "sgd", "warmup_fraction": 0.0, "weight_decay": 0.0}
    optimizer = optim.build(config(clip_norm=1.0, beta1=0.0, **changes), 10)
    grads = tree_of(3.0)
    updates = first_update(optimizer, grads)
    count = 6 + 3 + 3 + 12 + 12 + 75 + 3
    expected = -0.1 / math.sqrt(count)
    np.testing.assert_allclose(updates["head"]["kernel"], expected, rtol=1e-5)


def test_frozen_parameters_take_no_part_in_clipping_or_decay():
    changes = {"name": "sgd", "warmup_fraction": 0.0, "beta1": 0.0}
    optimizer = optim.build(config(clip_norm=1.0, trainable="norm", **changes), 10)
    updates = first_update(optimizer, tree_of(3.0))
    np.testing.assert_array_equal(updates["head"]["kernel"], np.zeros((2, 3)))
    np.testing.assert_allclose(updates["norm"]["scale"], -0.1 / math.sqrt(3), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam"}, "unknown config.optim.name 'adam'; did you mean 'adamw'"),
        ({"trainable": "("}, "config.optim.trainable '('"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"warmup_fraction": -0.5}, "warmup_fraction"),
        ({"schedule": "cosin"}, "config.optim.schedule 'cosin'; did you mean 'cosine'"),
        ({"epsilon": "x"}, "optimizer 'adamw': epsilon takes a number, got 'x'"),
        ({"beta1": 1.0}, "optimizer 'adamw': beta1 must lie in [0, 1), got 1.0"),
        (
            {"transformations": ({"name": "adaptive_clip", "clip": -1.0},)},
            "transformation 'adaptive_clip': clip must be at least 0, got -1.0",
        ),
        ({"epsilom": 1.0}, "'epsilom'; did you mean 'epsilon'"),
        (
            {"name": "sgd", "epsilon": 1.0},
            "unknown field of config.optim, with sgd and cosine: 'epsilon'",
        ),
        (
            {"transformations": ("agc",)},
            "unknown transformation 'agc' (allowed: adaptive_clip, clip_by",
        ),
    ],
)
def test_errors(changes, message):
    with pytest.raises(UserError) as caught:
        optim.build(config(**changes), 10)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="'nrom' matches no parameter"):
        optim.build(config(trainable="nrom"), 10).init(PARAMS)


def test_adaptive_clipping_and_projection_are_fields_of_the_config():
    """Each against the function itself, in its place: first, and last."""
    params, updates = tree_of(2.0), tree_of(30.0)
    plain = config(name="sgd", weight_decay=0.0, warmup_fraction=0.0)

    def moved(transformation):
        return first_update(transformation, updates, params)

    clipped = optim.build(ConfigDict({**plain, "adaptive_clip": 0.01}), 10)
    by_hand = optax.chain(optim.adaptive_clip(0.01), optim.build(plain, 10))
    chex.assert_trees_all_close(moved(clipped), moved(by_hand))
    projected = optim.build(ConfigDict({**plain, "project_weights": True}), 10)
    by_hand = optax.chain(optim.build(plain, 10), optim.normalize_and_project())
    chex.assert_trees_all_close(moved(projected), moved(by_hand))
    assert not np.allclose(jax.tree.leaves(moved(clipped))[0], -3.0)


def test_rows_have_the_defaults_of_configs():
    """What a config of old leaves out is read as its default, see `config.fields`."""
    fields = default_config().optim.to_dict()
    known = {*PARTS, *OWN, *EVERYWHERE}
    assert set(fields) == known
    for name, (_, default) in PARTS.items():
        assert fields[name] == default
    assert {name: fields[name] for name in OWN} == dict(OWN)
    for registry in (optim.OPTIMIZERS, optim.SCHEDULES):
        for entry in registry:
            for name, parameter in inspect.signature(entry.make).parameters.items():
                if name in fields:
                    assert parameter.default == fields[name], (entry.name, name)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_a_spec_alone_is_a_whole_config(name):
    """{"name": ...} is what a config says by default."""
    whole = default_config().optim
    whole.name = name
    updates = tree_of(0.5)

    def moved(config):
        transformation = optim.build(config, 10)

        @jax.jit
        def two_updates(params):
            _, state = transformation.update(
                updates, transformation.init(params), params
            )
            return transformation.update(updates, state, params)[0]

        return two_updates(PARAMS)

    chex.assert_trees_all_equal(moved({"name": name}), moved(whole))


def test_arguments_of_its_own():
    """With a large epsilon Adam's step is the rate times m / epsilon."""
    fields = {"warmup_fraction": 0.0, "weight_decay": 0.0, "epsilon": 1e4}
    optimizer = optim.build(config(**fields), 10)
    updates = first_update(optimizer, tree_of(3.0))
    np.testing.assert_allclose(updates["head"]["bias"], -0.1 * 3e-4, rtol=1e-3)


def test_transformations_in_their_places():
    """Those of gradients before the optimizer, those of updates behind it."""
    plain = {"name": "sgd", "beta1": 0.0, "weight_decay": 0.0, "warmup_fraction": 0.0}
    clip = {"name": "clip_by_global_norm", "max_norm": 1.0}
    both = ({"name": "normalize_and_project", "affine": "keep"}, clip)
    optimizer = optim.build(config(transformations=both, **plain), 10)
    # Not all alike: the projection would undo any step along the weights.
    gradients = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype), PARAMS)
    gradients = jax.tree.map(lambda g, x: g.reshape(x.shape), gradients, PARAMS)
    updates = first_update(optimizer, gradients)
    size = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
    bias = np.arange(3) * -0.1 / size
    np.testing.assert_allclose(updates["head"]["bias"], bias, rtol=1e-5)
    kernel = 2.0 - 0.1 * np.arange(6).reshape(2, 3) / size
    kernel *= np.sqrt(24) / np.linalg.norm(kernel)
    np.testing.assert_allclose(updates["head"]["kernel"], kernel - 2, atol=1e-6)
