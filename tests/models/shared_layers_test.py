"""Layers that share their weights and have norms of their own (WideNet)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models
from tests.models.convolutions import random_variables

DEPTH = 3


def build(**changes):
    arguments = {"dim": 8, "depth": DEPTH, "num_heads": 2, "mlp_ratio": 2.0, **changes}
    stem = {"name": "patch", "patch_size": 2}
    return models.build("vit", num_classes=3, stem=stem, **arguments)


def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 1)))


def variables_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    return random_variables(dict(shapes), np.float64)


def copied(params):
    """The parameters of a plain model: every layer has the shared weights."""
    shared = {name: params[name] for name in ("mixer", "mlp")}
    return {
        name: {**tree, **shared} if name.startswith("blocks_") else tree
        for name, tree in params.items()
        if name not in shared
    }


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"remat": True, "mixer": "sla"}, marks=pytest.mark.slow),
        {"placement": "sandwich", "norm": "repbn"},
    ],
)
def test_equals_a_plain_model_with_copied_weights(changes, x64):
    """The gradient of a shared weight is the sum of those of its copies."""
    shared, plain = build(share_layers=True, **changes), build(**changes)
    variables = variables_of(shared)
    state = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, model):
        logits = model.apply({**state, "params": params}, images())
        return jnp.sum(jnp.square(logits)), logits

    gradient = jax.grad(loss, has_aux=True)
    actual, logits = jax.jit(lambda p: gradient(p, shared))(variables["params"])
    params = copied(variables["params"])
    expected, by_copies = jax.jit(lambda p: gradient(p, plain))(params)
    np.testing.assert_allclose(logits, by_copies, rtol=1e-9)
    blocks = [expected.pop(f"blocks_{i}") for i in range(DEPTH)]
    for name in ("mixer", "mlp"):
        copies = [block.pop(name) for block in blocks]
        expected[name] = jax.tree.map(lambda *g: sum(g), *copies)
    expected |= {f"blocks_{i}": block for i, block in enumerate(blocks)}
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_shared_weights_absorb_no_norm_of_a_layer(x64):
    model = build(share_layers=True, norm="batch_norm", placement="sandwich")
    variables = variables_of(model)
    plan = {fold.path: fold for fold in fusion.plan(model, variables)}
    assert len(plan) == 4 * DEPTH + 1
    assert plan.pop("norm").into == ("head",)
    reasons = {fold.reason for fold in plan.values()}
    assert reasons == {"layers with other norms share the weights next to it"}
    folded, new = fusion.fold(model, variables)
    before, after = model.apply(variables, images()), folded.apply(new, images())
    np.testing.assert_allclose(after, before, rtol=1e-9)
