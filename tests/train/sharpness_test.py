"""Sharpness-aware updates in the loop's step, against NumPy and the plain step."""

import chex
import jax
import numpy as np
import optax
import pytest

from normjax import optim
from normjax.train.step import make_train_step
from tests.train.step_test import RATE, by_hand, parts, small_vit
from tests.train.tiny import Linear, toy_batch, toy_state

RHO = 0.3


def step_of(model, config, **changes):
    objective, recipe = parts(**changes)
    recipe = recipe._replace(perturb=optim.perturbation(config))
    rate = optax.constant_schedule(RATE)
    step = make_train_step(model, objective, optax.sgd(RATE), rate, recipe)
    return jax.jit(step)


def part_of(batch, number, count):
    return {name: rows[number::count] for name, rows in batch.items()}


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("trained", [".*", "kernel"])
def test_linear_classifier(microbatches, trained):
    """Each microbatch by its own gradient; loss and scores at the parameters."""
    model = Linear()
    before, batch = toy_state(model, optax.sgd(RATE)), toy_batch()
    step = step_of(
        model, {"sam_rho": RHO, "trainable": trained}, microbatches=microbatches
    )
    after, metrics = step(before, batch)
    expected = {}
    for number in range(microbatches):
        own = part_of(batch, number, microbatches)
        _, _, first = by_hand(before.params, own)
        moved = [name for name in first if trained in (".*", name)]
        size = np.sqrt(sum((first[name] ** 2).sum() for name in moved))
        there = {
            name: np.float64(value) + (RHO * first[name] / size if name in moved else 0)
            for name, value in before.params["head"].items()
        }
        _, _, second = by_hand({"head": there}, own)
        for name, slope in second.items():
            expected[name] = expected.get(name, 0) + slope / microbatches
    for name, slope in expected.items():
        wanted = np.float64(before.params["head"][name]) - RATE * slope
        np.testing.assert_allclose(after.params["head"][name], wanted, atol=1e-6)
    loss, accuracy, _ = by_hand(before.params, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)


def test_statistics_move_once_by_the_first_pass():
    model = small_vit("batch_norm", dropout_rate=0.2)
    before = toy_state(model, optax.sgd(RATE), (4, 4, 1))
    batch = toy_batch(shape=(4, 4, 1))
    states = [step_of(model, {"sam_rho": rho})(before, batch)[0] for rho in (0.0, RHO)]
    plain, sharp = (state.model_state for state in states)
    chex.assert_trees_all_close(sharp, plain, rtol=1e-6)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain, before.model_state)
    assert min(jax.tree.leaves(moved)) > 0
    kernels = [state.params["head"]["kernel"] for state in states]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
