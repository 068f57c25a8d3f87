"""What blocks keep for their backward pass: the same step, and products counted."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.errors import UserError
from normjax.core.operations import inner_jaxprs

KEPT = (False, True, *models.REMAT_POLICIES)


def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)))


def step_of(model, variables):
    """params -> (gradients, state)."""

    def loss(params):
        logits, new = model.apply(
            {**variables, "params": params},
            images(),
            train=True,
            mutable=["batch_stats", "diagnostics"],
            rngs={"dropout": jax.random.key(2)},
        )
        return jnp.sum(logits**2), new

    return jax.grad(loss, has_aux=True)


def tiny_vit(remat, mixer="identity"):
    parts = {"norm": {"name": "prepbn", "decay_steps": 4}, "dropout_rate": 0.3}
    sizes = {"num_classes": 3, "dim": 8, "depth": 1, "num_heads": 2}
    stem = {"name": "patch", "patch_size": 4}
    return models.build("vit", mixer=mixer, remat=remat, stem=stem, **sizes, **parts)


def small_resnet(remat):
    sizes = {"num_classes": 3, "depths": (1,), "widths": (4,)}
    return models.build("resnet", remat=remat, **sizes)


def counted(jaxpr, found):
    """How often each operation stands in a program, all branches together."""
    for equation in jaxpr.eqns:
        found[equation.primitive.name] += 1
        for inner in inner_jaxprs(equation.params):
            counted(inner, found)
    return found


@pytest.mark.parametrize("make", [tiny_vit, small_resnet])
def test_no_policy_changes_gradients_or_state(make):
    with jax.enable_x64(True):
        variables = jax.jit(make(False).init)(jax.random.key(1), images())
        variables = jax.tree.map(
            lambda x: x.astype(float) if x.dtype == jnp.float32 else x, variables
        )
        steps = [jax.jit(step_of(make(remat), variables)) for remat in KEPT]
        results = [step(variables["params"]) for step in steps]
    for other in results[1:]:
        chex.assert_trees_all_close(results[0], other, rtol=1e-12, atol=1e-14)


def test_policies_keep_what_they_say():
    """q, k, v, proj and fc1 in two forms, by platform; scores and weighted values.

    Nobody needs the result of fc2 again.
    """

    def products(make, name):
        model = make(False)
        shapes = jax.eval_shape(model.init, jax.random.key(1), images())
        variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        found = {}
        for remat in KEPT:
            step = step_of(make(remat), variables)
            program = jax.make_jaxpr(step)(variables["params"])
            count = counted(program.jaxpr, collections.Counter())
            found[remat] = count[name]
        return {remat: count - found[False] for remat, count in found.items()}

    again = products(lambda remat: tiny_vit(remat, "rela"), "dot_general")
    assert again[True] == again["nothing"] == 5 * 2 + 2
    assert again["projections"] == 2
    again = products(small_resnet, "conv_general_dilated")
    assert again["nothing"] > again["projections"] == 0


def test_an_unknown_policy_is_refused_in_a_line():
    with pytest.raises(
        UserError, match="unknown remat 'projection'; did you mean 'proj"
    ):
        jax.eval_shape(tiny_vit("projection").init, jax.random.key(0), images())
    with pytest.raises(UserError, match="remat takes True or False or a string"):
        tiny_vit(2)
