"""A small network whose batches hold outliers now and then."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from normjax import norms

STEPS, BATCH, EVERY, FACTOR, WIDTH, TRAINED = 400, 64, 10, 100.0, 64, 1400


class Network(nn.Module):
    """Twice Dense, norm, ReLU, and a classifier."""

    norm: Mapping[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i in range(2):
            x = nn.Dense(WIDTH, name=f"fc{i}")(x)
            x = nn.relu(norms.build(self.norm)(name=f"norm{i}")(x, train=train))
        return nn.Dense(10, name="head")(x)


def outliers(
    seed: int, folder: Path, norm: Mapping[str, Any], factor: float = FACTOR
) -> Mapping[str, float]:
    """`top1` of 397 scanned digits after 400 updates of 64 on the other 1,400.

    Every tenth batch is `factor` times as large. Adam at 3e-3.

    Args:
      seed: of parameters, split and batches.  folder: not used.
      norm: spec of a norm.  factor: 1 for no outliers.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    train, test = np.split(rng.permutation(len(images)), [TRAINED])
    model, optimizer = Network(norm), optax.adam(3e-3)
    state = dict(model.init(jax.random.key(seed), images[:2], train=True))
    params = state.pop("params")

    def loss_of(params, state, x, y):
        variables = {"params": params, **state}
        logits, new = model.apply(variables, x, train=True, mutable=list(state))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    @jax.jit
    def step(params, state, moments, x, y):
        gradients, new = jax.grad(loss_of, has_aux=True)(params, state, x, y)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), new, moments

    moments = optimizer.init(params)
    for i in range(STEPS):
        rows = rng.choice(train, BATCH)
        times = factor if i % EVERY == EVERY - 1 else 1.0
        given = (times * images[rows], labels[rows])
        params, state, moments = step(params, state, moments, *given)
    logits: Any = model.apply({"params": params, **state}, images[test])
    return {"top1": float(jnp.mean(jnp.argmax(logits, -1) == labels[test]))}
