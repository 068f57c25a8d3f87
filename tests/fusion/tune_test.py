"""The tune mode of whole models against models whose norms are frozen."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import fusion, models
from tests.models.convolutions import abstract, random_variables

TINY = {
    "num_classes": 3,
    "depths": (1, 1),
    "widths": (4, 6),
    "stem": {"name": "conv_unit", "stride": 1},
}


def resnet(**changes):
    return models.build("resnet", **{**TINY, **changes})


def test_values_and_gradients_are_those_of_frozen_norms(x64):
    """With train=True, where the host itself would use the batch."""
    host = resnet()
    variables = random_variables(abstract(host, 8), np.float64)
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(2, 3))
    state = {"batch_stats": variables["batch_stats"]}

    def outcome(model, train):
        def loss(params):
            given = {**state, "params": params}
            logits, new = model.apply(given, x, train=train, mutable=["batch_stats"])
            return jnp.sum(logits * weights), (logits, new)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    @jax.jit
    def both():
        return outcome(fusion.TunedModel(host), True), outcome(host, False)

    ((_, (tuned, new)), gradient), ((_, (frozen, _)), expected) = both()
    np.testing.assert_allclose(tuned, frozen, rtol=1e-10, atol=1e-10)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-8, atol=1e-10)
    chex.assert_trees_all_equal(dict(new), state)
    assert all(np.any(g) for g in jax.tree.leaves(gradient))


def test_variables_are_those_of_the_host_and_work_that_of_the_folded_model():
    host = resnet()
    x = jnp.ones((1, 8, 8, 3))
    tuned = fusion.TunedModel(host)
    init = [jax.eval_shape(m.init, jax.random.key(0), x) for m in (host, tuned)]
    chex.assert_trees_all_equal_shapes_and_dtypes(*init)
    variables = random_variables(abstract(host, 8))
    work = fusion.size_of(tuned, variables, x).operations
    unfolded = fusion.size_of(host, variables, x).operations
    folded = fusion.size_of(*fusion.fold(host, variables), x).operations
    # Beyond the folded model only weights are multiplied, and nothing by position.
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert folded < work <= folded + 2 * weights < unfolded


@pytest.mark.parametrize("norm", ["layer_norm", "repbn"])
def test_other_norms_stay(norm):
    host = resnet(norm=norm)
    variables = random_variables(abstract(host, 8))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    tuned = jax.jit(fusion.TunedModel(host).apply)(variables, x)
    np.testing.assert_array_equal(tuned, jax.jit(host.apply)(variables, x))
