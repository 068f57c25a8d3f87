"""Terms of the loss by the paths of layers: by hand in NumPy, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import models
from normjax.activations import AutoReP
from normjax.core.errors import UserError
from normjax.tasks.classification import normalize_pixels
from normjax.train.penalties import penalties_of, watched, weighed
from normjax.train.step import make_train_step
from tests.train.step_test import RATE, parts
from tests.train.tiny import toy_batch, toy_state

STAGES = {"name": "prosparse", "start": 1, "ends": (2, 4), "peaks": (0.5, 1.5)}
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 1.5)  # of updates 1 to 5; half a sine between 2 and 4


class Hidden(nn.Module):
    """Two layers with a ReLU between them."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(5, name="fc1")(x)))


class Shift(nn.Module):
    """A convolution by twice a shift."""

    strides: int = 1

    @nn.compact
    def __call__(self, images, train=False):
        def twice(key, shape, dtype):
            return np.zeros(shape, dtype) + 2 * np.eye(9)[0].reshape(3, 3, 1, 1)

        conv = nn.Conv(1, (3, 3), self.strides, use_bias=False, kernel_init=twice)
        x = conv(images).mean((1, 2))
        return nn.Dense(4, name="head")(x)


class Relayed(nn.Module):
    """Two activations that may become polynomials."""

    @nn.compact
    def __call__(self, images, train=False):
        x = AutoReP()(images)
        return nn.Dense(4, name="head")(AutoReP()(x).mean((1, 2)))


def trained(model, specs, shape=(2, 2, 1), updates=1, **changes):
    """States before and after each update, and its metrics."""
    objective, recipe = parts(**changes)
    recipe = recipe._replace(penalties=penalties_of(specs))
    optimizer, rate = optax.sgd(RATE), optax.constant_schedule(RATE)
    step = jax.jit(make_train_step(model, objective, optimizer, rate, recipe))
    states, found = [toy_state(model, optimizer, shape)], []
    for _ in range(updates):
        state, metrics = step(states[-1], toy_batch(shape=shape))
        states.append(state)
        found.append(metrics)
    return states, found


@pytest.mark.parametrize("microbatches", [1, 2])
def test_sparsity_of_what_a_layer_reads(microbatches):
    given = {"microbatches": microbatches, "updates": len(WEIGHTS)}
    states, found = trained(Hidden(), {**STAGES, "pattern": "head"}, **given)
    batch = toy_batch()
    x = np.float64(normalize_pixels(batch["image"], (0.5,), (0.25,))).reshape(8, -1)
    pairs = zip(states, found, WEIGHTS, strict=False)
    for state, metrics, weight in pairs:
        fc1 = jax.tree.map(np.float64, state.params["fc1"])
        hidden = np.maximum(x @ fc1["kernel"] + fc1["bias"], 0)
        expected = weight * hidden.sum(1).mean()
        np.testing.assert_allclose(metrics["penalty"], expected, rtol=1e-5, atol=1e-7)
        zeros = (hidden == 0).mean()
        np.testing.assert_allclose(metrics["sparsity"], zeros, rtol=1e-6)
    # The gradient: the update with the penalty less that without.
    before = states[1]
    plain = parts(microbatches=microbatches)
    step = make_train_step(
        Hidden(), plain[0], optax.sgd(RATE), lambda _: RATE, plain[1]
    )
    without, _ = jax.jit(step)(before, batch)
    fc1 = jax.tree.map(np.float64, before.params["fc1"])
    alive = x @ fc1["kernel"] + fc1["bias"] > 0
    slope = WEIGHTS[1] * x.T @ alive / len(x)
    moved = np.float64(states[2].params["fc1"]["kernel"])
    moved -= without.params["fc1"]["kernel"]
    np.testing.assert_allclose(moved, -RATE * slope, atol=1e-6)


@pytest.mark.parametrize(("strides", "loss"), [(1, 9.0), (2, 9.0)])
def test_convolutions_that_are_to_be_orthogonal(strides, loss):
    """conv(K, K) of twice a shift is 4 in the middle: (4 - 1)^2."""
    spec = {"name": "orthogonal_convolution", "pattern": "Conv", "factor": 0.1}
    (before, after), (metrics,) = trained(Shift(strides), spec, shape=(4, 4, 1))
    np.testing.assert_allclose(metrics["penalty"], 0.1 * loss, rtol=1e-6)
    kernels = [float(s.params["Conv_0"]["kernel"][0, 0, 0, 0]) for s in (before, after)]
    (_, plain), _ = trained(Shift(strides), (), shape=(4, 4, 1))
    # d (k^2 - 1)^2 / dk = 4 k (k^2 - 1)
    slope = 0.1 * 4 * kernels[0] * (kernels[0] ** 2 - 1)
    moved = kernels[1] - float(plain.params["Conv_0"]["kernel"][0, 0, 0, 0])
    np.testing.assert_allclose(moved, -RATE * slope, rtol=1e-4)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_few_positions_stay_relu(microbatches):
    """The rate of alpha goes straight through the masks, all ones in the beginning."""
    spec = {"name": "relu_budget", "pattern": "Auto", "share": 0.25, "factor": 2.0}
    given = {"shape": (4, 4, 1), "microbatches": microbatches, "updates": 2}
    states, (first, second) = trained(Relayed(), (spec,), **given)
    plain, _ = trained(Relayed(), (), **given)
    np.testing.assert_allclose(first["penalty"], 2 * 0.75, rtol=1e-6)
    paths = [("AutoReP_0",), ("AutoReP_1",)]
    total = sum(states[0].params[path[0]]["alpha"].size for path in paths)
    for (name,) in paths:
        alpha = np.float64(states[0].params[name]["alpha"])
        moved = np.float64(states[1].params[name]["alpha"])
        moved -= plain[1].params[name]["alpha"]
        slope = 2 / total * np.log1p(np.exp(alpha))
        np.testing.assert_allclose(moved, -RATE * slope, atol=1e-7)
    masks = [states[2].model_state["batch_stats"][n]["relay_mask"] for (n,) in paths]
    share = sum(float(m.sum()) for m in masks) / total
    np.testing.assert_allclose(second["penalty"], 2 * (share - 0.25), rtol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_layers_that_are_scanned_count_each(scan_layers):
    model = models.build(
        "decoder",
        vocab_size=7,
        dim=8,
        depth=2,
        num_heads=2,
        activation="relu",
        scan_layers=scan_layers,
    )
    tokens = np.zeros((1, 3), np.int32)
    penalties = penalties_of({**STAGES, "pattern": "mlp/fc2"})

    def losses(key):
        variables = model.init(key, tokens)
        with watched(penalties):
            _, sown = model.apply(variables, tokens, mutable=["losses", "diagnostics"])
        total, rest = weighed(penalties, jnp.int32(1), sown["losses"])
        return total, rest, sown["losses"]

    total, rest, sown = jax.eval_shape(losses, jax.random.key(0))
    assert total.shape == () and not rest
    assert sum(x.size for x in jax.tree.leaves(sown)) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "prosparse"}, r"penalties\[0\] needs a name and a pattern"),
        ({"name": "prosparse", "pattern": "x"}, "needs start and ends and peaks"),
        ({"name": "ridge", "pattern": "x"}, "unknown penalty 'ridge'"),
        ({**STAGES, "pattern": "("}, r"pattern '\('"),
        ({"name": "relu_budget", "pattern": "x", "share": 2.0}, "share=2.0 must lie"),
        ({**STAGES, "pattern": "x", "peaks": (1.0,)}, "2 ends of stages and 1 peaks"),
    ],
)
def test_wrong_rules(spec, message):
    with pytest.raises(UserError, match=message):
        penalties_of((spec,))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({**STAGES, "pattern": "mlp"}, "'mlp' finds no layer with a parameter 'kern"),
        (
            {"name": "relu_budget", "pattern": "x", "share": 0.5},
            "'x' finds no layer with a parameter 'alpha'",
        ),
        (
            {"name": "orthogonal_convolution", "pattern": "head"},
            "takes square convolutions without groups, not head",
        ),
    ],
)
def test_rules_that_find_nothing_of_theirs(spec, message):
    with pytest.raises(UserError, match=message):
        trained(Hidden(), spec)
