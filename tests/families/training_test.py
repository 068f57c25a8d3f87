"""The smallest network of every family of images trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import models
from normjax.families import FAMILIES

SMALLEST = {
    name: figures
    for family in FAMILIES.values()
    for name, figures in list(family.figures.items())[:1]
}
CLASSES, SHARE = 10, 0.02


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", SMALLEST)
def test_two_steps_down_the_gradient_lower_the_loss(name):
    """Each by a length that would lower a linear loss by a fiftieth of it."""
    model = models.build(name, num_classes=CLASSES)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *SMALLEST[name].sides, 3)).astype(np.float32)
    labels = np.array([1, 7])
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(jax.jit(model.init)(keys, images))
    params = variables.pop("params")

    def loss_of(params, state):
        logits, new = model.apply(
            {"params": params, **state},
            images,
            train=True,
            mutable=[*state, "losses", "diagnostics"],
            rngs={"dropout": keys["dropout"]},
        )
        if logits.ndim == 3:  # of every step of a line
            logits = jnp.mean(logits, axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), {k: new[k] for k in state}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        (loss, state), slopes = jax.value_and_grad(loss_of, has_aux=True)(params, state)
        square = optax.tree.norm(slopes, squared=True)
        params = jax.tree.map(
            lambda p, g: p - SHARE * loss / square * g, params, slopes
        )
        return params, state, loss

    state, losses = variables, []
    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0] < 20, losses
