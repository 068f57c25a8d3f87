"""Random features against what they estimate, and where layers of them start."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)
X, W, BIAS = RNG.normal(0, 0.4, (3, 5)), RNG.normal(0, 0.4, (2, 5)), RNG.normal(size=2)


def test_relu_features_estimate_the_arc_cosine_kernel():
    directions = RNG.normal(size=(200_000, 5))
    phi, psi = (np.asarray(models.relu_features(t, directions)) for t in (X, W))
    for i, j in np.ndindex(3, 2):
        lengths = np.linalg.norm(X[i]) * np.linalg.norm(W[j])
        theta = np.arccos(X[i] @ W[j] / lengths)
        angular = np.sin(theta) + (np.pi - theta) * np.cos(theta)
        expected = lengths * angular / (2 * np.pi)
        np.testing.assert_allclose(phi[i] @ psi[j], expected, atol=0.01)


@pytest.mark.parametrize(
    ("function", "control"), [("cos", 0.0), ("sin", 0.0), ("sin", 0.1)]
)
def test_universal_features_estimate_the_function(function, control):
    """At every control of the variance."""
    count = 200_000
    drawn = RNG.normal(size=(count, 5)), RNG.choice([-1, 1], count) / (2 * np.pi)
    arguments = {"function": function, "control": control}
    phi, psi = models.universal_features(X, W, BIAS, *drawn, **arguments)
    estimate = (np.asarray(phi) @ np.asarray(psi).T).real
    expected = getattr(np, function)(X @ W.T + BIAS)
    np.testing.assert_allclose(estimate, expected, atol=0.02)


def test_directions_are_drawn_once_and_do_not_train():
    """By the key of the parameters; Psi starts as the features of a weight."""
    layer = models.KernelDense(features=3, num_features=6, normalize=True, scale=2.0)
    init = jax.jit(layer.init)
    one, same, other = (init(jax.random.key(k), X) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    drawn = one["constants"]["directions"]
    assert np.abs(drawn - other["constants"]["directions"]).max() > 0.1
    assert set(one["params"]) == {"psi"}
    unit = X / np.linalg.norm(X, axis=-1, keepdims=True)
    expected = np.maximum(2 * unit @ np.asarray(drawn).T, 0) / np.sqrt(6)
    expected = expected @ np.asarray(one["params"]["psi"])
    apply = jax.jit(layer.apply)
    np.testing.assert_allclose(apply(one, X), expected, rtol=1e-5, atol=1e-6)
    # Nothing depends on the length, and a token of zeros is one.
    np.testing.assert_allclose(apply(one, 5 * X), apply(one, X), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(layer.apply(one, x)))(jnp.zeros((1, 5)))
    assert np.isfinite(slope).all()


def test_an_adapter_starts_as_its_input():
    for arguments in ({}, {"down": 2, "norm": nn.LayerNorm}):
        adapter = models.KernelAdapter(num_features=4, **arguments)
        y, variables = adapter.init_with_output(jax.random.key(0), jnp.float32(X))
        np.testing.assert_array_equal(y, np.float32(X))
        moved = jax.tree.map(lambda t: t + 0.5, variables["params"])
        y = adapter.apply({**variables, "params": moved}, jnp.float32(X))
        assert np.abs(np.asarray(y) - X).max() > 0.1


def test_an_unknown_function():
    with pytest.raises(UserError, match="unknown function 'cosh'; did you mean 'cos'"):
        models.universal_features(X, W, BIAS, X, BIAS, function="cosh")
