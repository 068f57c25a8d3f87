"""Recalibrated statistics are the moments of all activations, by NumPy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import norms
from normjax.tasks import Classification
from normjax.train.recalibrate import recalibrate

OBJECTIVE = Classification(num_classes=3, mean=(0.5,), std=(0.25,))


class Net(nn.Module):
    """Norm, linear, norm, linear; the norms are `first` and `second`."""

    first: object
    second: object

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        x = self.first(name="first")(x, train=train)
        x = nn.tanh(nn.Dense(5, name="fc1")(x))
        x = self.second(name="second")(x, train=train)
        return nn.Dense(3, name="fc2")(x)


def variables_of(model):
    """Random parameters and statistics, so that nothing is trivial."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    fresh = [
        jax.random.uniform(k, x.shape, minval=0.5) if x.dtype == jnp.float32 else x + 7
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, fresh)


def batches_of(count=4, rows=6):
    rng = np.random.default_rng(0)
    drift = np.arange(count) * 20  # batches differ, so their mean is no batch's mean
    return [
        {"image": rng.integers(0, 100, (rows, 2, 2, 1), dtype=np.uint8) + np.uint8(d)}
        for d in drift
    ]


def pixels(batch):
    return (batch["image"].reshape(-1, 4).astype(np.float64) / 255 - 0.5) / 0.25


def test_two_batch_norms():
    model = Net(norms.build("batch_norm"), norms.build("repbn"))
    variables, batches = variables_of(model), batches_of()
    before = jax.tree.map(np.asarray, variables)
    stats = recalibrate(model, variables, batches, OBJECTIVE)

    x = np.concatenate([pixels(b) for b in batches])
    np.testing.assert_allclose(stats["first"]["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["first"]["var"], x.var(0), rtol=1e-5)

    p, hidden = before["params"], []
    for batch in batches:  # the second sees what the first makes of each batch alone
        x = pixels(batch)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = x * p["first"]["scale"] + p["first"]["bias"]
        hidden.append(np.tanh(x @ p["fc1"]["kernel"] + p["fc1"]["bias"]))
    hidden = np.concatenate(hidden)
    np.testing.assert_allclose(stats["second"]["mean"], hidden.mean(0), rtol=1e-4)
    np.testing.assert_allclose(stats["second"]["var"], hidden.var(0), rtol=1e-3)
    chex.assert_trees_all_equal(before, jax.tree.map(np.asarray, variables))


def test_counter_of_prepbn_stands_still():
    model = Net(norms.build("prepbn", decay_steps=100), norms.build("layer_norm"))
    variables, batches = variables_of(model), batches_of()
    stats = recalibrate(model, variables, batches, OBJECTIVE)
    chex.assert_trees_all_equal_structs(stats, variables["batch_stats"])
    assert int(stats["first"]["step"]) == 7
    x = np.concatenate([pixels(b) for b in batches])
    own = stats["first"]["batch_norm"]
    np.testing.assert_allclose(own["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(own["var"], x.var(0), rtol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics():
    frozen = norms.build("batch_norm", use_running_average=True)
    model = Net(frozen, norms.build("batch_norm"))
    variables = variables_of(model)
    stats = recalibrate(model, variables, batches_of(), OBJECTIVE)
    old = variables["batch_stats"]
    chex.assert_trees_all_equal(stats["first"], old["first"])
    assert not np.allclose(stats["second"]["mean"], old["second"]["mean"])


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_batches(count):
    model = Net(norms.build("batch_norm"), norms.build("none"))
    stats = recalibrate(model, variables_of(model), batches_of(count), OBJECTIVE)
    x = np.concatenate([pixels(b) for b in batches_of(count)])
    np.testing.assert_allclose(stats["first"]["var"], x.var(0), rtol=1e-5)


def test_other_statistics_stay():
    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return x + self.variable("batch_stats", "offset", jnp.ones, ()).value

    model = Net(Foreign, norms.build("layer_norm"))
    variables = variables_of(model)
    stats = recalibrate(model, variables, batches_of(), OBJECTIVE)
    chex.assert_trees_all_equal(stats, variables["batch_stats"])
