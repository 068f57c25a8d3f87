"""Scanned layers are treated one by one by what updates and prunes weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim
from normjax.prune import magnitude_pruned
from tests.optim.build_test import config

SCANNED = ("blocks",)
RNG = np.random.default_rng(0)
STACKED = {
    "norm": {"scale": RNG.uniform(1, 2, (3, 4)), "bias": RNG.normal(size=(3, 4))},
    "fc": {"kernel": RNG.normal(size=(3, 4, 5)), "bias": RNG.normal(size=(3, 5))},
}
STACKED["fc"]["kernel"] *= np.array([1.0, 10.0, 100.0])[:, None, None]
HEAD = {"head": {"kernel": RNG.normal(size=(4, 2))}}


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def apart(tree):
    """The layers under names of their own."""
    layers = {
        f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], tree["blocks"])
        for i in range(3)
    }
    return {**{k: v for k, v in tree.items() if k != "blocks"}, **layers}


PARAMS = float32({**HEAD, "blocks": STACKED})


@pytest.mark.parametrize(
    "make",
    [
        lambda scanned: optim.build(config(weight_decay=0.5), 10, scanned),
        lambda scanned: optim.adaptive_clip(0.01, scanned=scanned),
        lambda scanned: optax.chain(
            optax.sgd(0.3), optim.normalize_and_project(scanned=scanned)
        ),
        lambda scanned: optax.chain(
            optax.sgd(0.3),
            optim.normalize_and_project(
                affine="regularize", with_bias=True, scanned=scanned
            ),
        ),
    ],
    ids=["decay", "adaptive_clip", "project", "regularize"],
)
def test_updates_are_those_of_the_unrolled_model(make):
    gradients = jax.tree.map(lambda x: jnp.cos(7 * x), PARAMS)

    @functools.partial(jax.jit, static_argnums=0)
    def two_steps(scanned, params, gradients):
        optimizer = make(scanned)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    actual = apart(two_steps(SCANNED, PARAMS, gradients))
    expected = two_steps((), apart(PARAMS), apart(gradients))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6),
        actual,
        expected,
    )


def test_every_layer_is_pruned_by_itself():
    pruned, zeros = magnitude_pruned(PARAMS, 0.3, SCANNED)
    expected, _ = magnitude_pruned(apart(PARAMS), 0.3)
    jax.tree.map(np.testing.assert_array_equal, apart(pruned), expected)
    assert zeros["blocks/fc/kernel"] == (3 * 6, 3 * 20)
