"""Converted models: the outputs, gradients and training of the Pre-LN model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import fusion, models
from normjax.core.errors import UserError
from tests.fusion.fold_test import CONV, PATCH, build, images, random_variables

CASES = {
    "cls": dict(pool="cls"),
    "sla-conv": dict(mixer="sla", stem=CONV),
    "no-bias": dict(bias=False, stem=CONV),
    "scaled": dict(placement="scaled"),
    "no-affine": dict(norm={"name": "layer_norm", "use_scale": False}),
}


def pre_ln(norm="layer_norm", **arguments):
    return build(norm, depth=2, **{"stem": PATCH, **arguments})


BOTH = ("rms_norm", "crms_norm")
PAIRS = [
    # Each once; the other one is slow.
    pytest.param(case, to, marks=() if i % 2 == j else pytest.mark.slow)
    for i, case in enumerate(CASES)
    for j, to in enumerate(BOTH)
]


@pytest.mark.parametrize(("case", "to"), PAIRS)
def test_outputs_and_gradients_are_those_of_the_pre_ln_model(case, to):
    model = pre_ln(**CASES[case])
    with jax.enable_x64(True):
        variables = random_variables(model, np.float64)
        x = images(np.float64)
        conversion = fusion.convert_pre_norm(model, variables, to)

        def loss(apply):
            def of(variables):
                logits = apply(variables)
                return jnp.sum(jnp.sin(logits)), logits

            return jax.grad(of, has_aux=True)

        def through(variables):
            new = conversion.transform(variables)
            return conversion.model.apply(new, x, train=True)

        @jax.jit
        def both(variables):
            return (
                loss(lambda v: model.apply(v, x))(variables),
                loss(through)(variables),
                conversion.model.apply(conversion.variables, x),
            )

        (old, expected), (new, trained), logits = both(variables)
        for actual in (logits, trained):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
        chex.assert_trees_all_close(new, old, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("to", BOTH)
def test_the_new_model_computes_no_mean_over_channels(to):
    """On a stream that is not centred it must not be the old model."""
    model = pre_ln()
    variables = random_variables(model)
    conversion = fusion.convert_pre_norm(model, variables, to)
    broken = jax.tree.map(lambda a: a, conversion.variables)
    broken["params"]["pos_embed"] = broken["params"]["pos_embed"] + 1.0
    x = images()
    new, old = jax.jit(conversion.model.apply), jax.jit(model.apply)
    difference = new(broken, x) - old(variables, x)
    assert np.abs(difference).max() > 1e-2


def test_training_through_the_transform_is_training_the_old_model():
    model = pre_ln()
    variables = random_variables(model)
    conversion = fusion.convert_pre_norm(model, variables, "crms_norm")
    x, optimizer = images(), optax.sgd(0.1)

    def train(apply):
        @jax.jit
        def step(variables, state):
            gradient = jax.grad(lambda v: jnp.sum(apply(v) ** 2))(variables)
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(variables, updates), state

        result, state = variables, optimizer.init(variables)
        for _ in range(5):
            result, state = step(result, state)
        return result

    old = train(lambda v: model.apply(v, x))
    new = train(lambda v: conversion.model.apply(conversion.transform(v), x))
    chex.assert_trees_all_close(new, old, rtol=1e-4, atol=1e-5)


def test_shapes_and_report():
    model = pre_ln(pool="cls")
    variables = random_variables(model)
    conversion = fusion.convert_pre_norm(model, variables, "crms_norm")
    params = conversion.variables["params"]
    assert params["cls_token"].shape[-1] == 7
    assert params["blocks_1"]["mixer"]["qkv"]["kernel"].shape == (7, 24)
    assert params["blocks_1"]["mixer"]["proj"]["kernel"].shape == (8, 7)
    assert params["blocks_1"]["mlp"]["fc2"]["bias"].shape == (7,)
    assert "norm1" not in params["blocks_0"] and "norm" not in params
    expected = jax.eval_shape(conversion.model.init, jax.random.key(0), images())
    chex.assert_trees_all_equal_shapes(dict(expected)["params"], params)
    changes = dict(conversion.report)
    assert changes["norm"] == "layer_norm -> crms_norm (scale, bias into its readers)"
    assert changes["pos_embed"] == "centred over the channels"
    assert changes["head"] == "reads the new stream"


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(norm="batch_norm"), "norm1 is BatchNorm"),
        (dict(placement="post"), "'post' adds norms"),
        (dict(placement="peri"), "'peri' adds norms"),
        (dict(placement="none"), "'none' lets layers"),
        (dict(dropout_rate=0.1), "dropout"),
    ],
)
def test_what_cannot_be_converted_is_named(arguments, message):
    model = pre_ln(**arguments)
    with pytest.raises(UserError, match=message):
        fusion.convert_pre_norm(model, random_variables(model), "rms_norm")


def test_unknown_target():
    model = models.build("deit_tiny", num_classes=2)
    with pytest.raises(UserError, match="rms_norm"):
        fusion.convert_pre_norm(model, {"params": {}}, "rmsnorm")
