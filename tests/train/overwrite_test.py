"""Norms that write state in the backward pass, through the training step.

The contract: an update replaces that state by its "gradient" and keeps it out of the
optimizer, the weight decay, the clipping and the gradient norm.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import models, norms
from normjax.core.collections import BATCH_STATS, OVERWRITE
from normjax.devices import mesh as meshes
from normjax.devices.sharding import with_shardings
from normjax.records.checkpoint import Checkpoints
from normjax.tasks import Classification
from normjax.train.step import Recipe, make_train_step
from tests.norms.power_rows import power_norm, power_norm_gradient
from tests.norms.unified_rows import unified_norm, unified_norm_gradient
from tests.train.tiny import Linear, toy_batch, toy_state

RATE = 0.1
SPECS = {
    "power_norm": {"name": "power_norm", "warmup_steps": 2, "num_groups": 2},
    "unified_norm": {
        "name": "unified_norm",
        "warmup_steps": 2,
        "window": 2,
        "gradient_window": 2,
        "rescale_after": 2,
    },
}
ORACLES = {
    "power_norm": (power_norm, power_norm_gradient),
    "unified_norm": (unified_norm, unified_norm_gradient),
}


class Normed(nn.Module):
    """logits = norm(pixels) W + b."""

    norm: functools.partial

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        return Linear(name="linear")(self.norm(name="norm")(x, train=train))


def step_of(model, optimizer, microbatches=1):
    objective = Classification(num_classes=4, mean=(0.5,), std=(0.25,))
    schedule, recipe = optax.constant_schedule(RATE), Recipe(microbatches)
    step = make_train_step(model, objective, optimizer, schedule, recipe)
    return jax.jit(step)


def started(model, optimizer, shape=(2, 2, 1)):
    """The first state, with backward state that is no zero."""
    state = toy_state(model, optimizer, shape)
    rng = np.random.default_rng(5)
    written = jax.tree.map(
        lambda a: jnp.asarray(rng.uniform(10, 20, a.shape), a.dtype),
        state.model_state[OVERWRITE],
    )
    return state.replace(model_state={**state.model_state, OVERWRITE: written})


def small_vit(norm, **changes):
    return models.build(
        "vit",
        num_classes=4,
        dim=8,
        depth=2,
        num_heads=2,
        mlp_ratio=1.0,
        norm=norm,
        stem={"name": "patch", "patch_size": 2},
        **changes,
    )


class ByHand:
    """`Normed` and its update in float64 NumPy.

    Attributes:
      params, stats, overwrite: as in the state of the step.
    """

    def __init__(self, state, spec):
        wide = functools.partial(jax.tree.map, np.float64)
        self.params = wide(dict(state.params))
        self.stats = wide(dict(state.model_state[BATCH_STATS]["norm"]))
        self.overwrite = wide(dict(state.model_state[OVERWRITE]["norm"]))
        self.kwargs = {k: v for k, v in spec.items() if k != "name"}
        self.forward, self.backward = ORACLES[spec["name"]]

    def update(self, batch, microbatches):
        """One step of gradient descent; returns the norm of the gradient."""
        pixels = batch["image"].reshape(len(batch["label"]), -1) / 255
        held, total = self.stats["step"], None
        for part in range(microbatches):
            self.stats = {**self.stats, "step": held}
            rows = slice(part, None, microbatches)
            grads = self.gradients((pixels[rows] - 0.5) / 0.25, batch["label"][rows])
            grads = jax.tree.map(lambda g: g / microbatches, grads)
            total = grads if total is None else jax.tree.map(np.add, total, grads)
        self.params = jax.tree.map(lambda p, g: p - RATE * g, self.params, total)
        return np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(total)))

    def gradients(self, x, labels):
        """Gradients of one microbatch; moves both states."""
        params, linear = self.params["norm"], self.params["linear"]["head"]
        arguments = (None, True, self.kwargs)
        h, stats = self.forward(x, params, self.stats, *arguments)
        e = np.exp(h @ linear["kernel"] + linear["bias"])
        slope = (e / e.sum(-1, keepdims=True) - np.eye(4)[labels]) / len(x)
        dh = slope @ linear["kernel"].T
        state = (self.stats, self.overwrite)
        _, dnorm, overwrite = self.backward(x, dh, params, *state, None, self.kwargs)
        self.stats, self.overwrite = stats, overwrite
        head = {"kernel": h.T @ slope, "bias": slope.sum(0)}
        return {"norm": dnorm, "linear": {"head": head}}


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("name", SPECS)
def test_updates_equal_those_by_hand(name, microbatches):
    """Four updates, through the end of the norm's warmup; the clipping never bites.

    It would if the state written, of size 10 and more, were taken for a gradient.
    """
    model = Normed(norms.build(SPECS[name]))
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(RATE))
    state = started(model, optimizer)
    hand = ByHand(state, SPECS[name])
    step = step_of(model, optimizer, microbatches)
    for i in range(4):
        batch = toy_batch(seed=i)
        largest = np.abs(state.model_state[OVERWRITE]["norm"]["nu"]).max()
        state, metrics = step(state, batch)
        norm = hand.update(batch, microbatches)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
        if microbatches == 1:  # otherwise the mean over the microbatches
            np.testing.assert_allclose(metrics[f"{name}_nu"], largest, rtol=1e-5)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
    close(state.params, hand.params)
    close(dict(state.model_state[BATCH_STATS]["norm"]), hand.stats)
    close(dict(state.model_state[OVERWRITE]["norm"]), hand.overwrite)


@pytest.mark.parametrize("name", SPECS)
def test_optimizer_and_decay_do_not_see_the_state(name):
    model = Normed(norms.build(SPECS[name]))
    decaying, still = optax.adamw(RATE, weight_decay=0.5), optax.sgd(0.0)
    results = []
    for choice in (decaying, still):
        state, _ = step_of(model, choice)(started(model, choice), toy_batch())
        results.append(state.model_state)
        # Its structure knows the parameters alone.
        expected = choice.init(state.params)
        chex.assert_trees_all_equal_shapes_and_dtypes(state.opt_state, expected)
    chex.assert_trees_all_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_remat_writes_the_same_state(name):
    """The forward pass that runs again must not count twice."""
    optimizer, results = optax.sgd(RATE), []
    for remat in (False, True):
        model = small_vit(SPECS[name], remat=remat)
        state, step = started(model, optimizer), step_of(model, optimizer)
        for i in range(3):
            state, _ = step(state, toy_batch(seed=i))
        results.append(state)
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_four_devices_equal_one(name):
    model, optimizer = small_vit(SPECS[name]), optax.sgd(RATE)
    step = step_of(model, optimizer, microbatches=2)
    results = []
    for devices in (1, 4):
        mesh = meshes.device_mesh(jax.devices()[:devices])
        state = jax.device_put(started(model, optimizer), meshes.replicated(mesh))
        for i in range(3):
            batch = jax.device_put(toy_batch(seed=i), meshes.split_batch(mesh))
            state, _ = step(state, batch)
        results.append(jax.device_get(state))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_checkpoint_brings_the_state_back(name, tmp_path):
    model, optimizer = Normed(norms.build(SPECS[name])), optax.adam(RATE)
    step = step_of(model, optimizer)
    state, _ = step(started(model, optimizer), toy_batch())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    everywhere = meshes.replicated(meshes.device_mesh(jax.devices()))
    restored = checkpoints.restore(1, with_shardings(state, everywhere))
    checkpoints.close()
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    following = [step(s, toy_batch(seed=1))[0] for s in (state, restored)]
    chex.assert_trees_all_close(*map(jax.device_get, following), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_prepbn_leaves_the_state_in_warmup_and_hands_over(name):
    spec = {
        "name": "prepbn",
        "warmup_steps": 2,
        "decay_steps": 2,
        "batch_norm": SPECS[name],
    }
    model, optimizer = small_vit(spec), optax.sgd(RATE)
    state, step = started(model, optimizer), step_of(model, optimizer, microbatches=2)
    first = state.model_state[OVERWRITE]
    for i in range(5):
        state, metrics = step(state, toy_batch(seed=i))
        written = state.model_state[OVERWRITE]
        if i < 2:
            chex.assert_trees_all_equal(written, first)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), written, first)
    assert not any(jax.tree.leaves(same))
    chex.assert_tree_all_finite(state.params)
    assert float(metrics["lam"]) == 0.0
