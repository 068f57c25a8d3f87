"""Placements against residual formulas written out, with linear branches."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.models.layers import StochasticDepth
from normjax.models.placement import PLACEMENTS, mix, placement_of, residual

DEPTH = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5))
WEIGHTS = [RNG.normal(size=(5, 5)) / 2 for _ in range(DEPTH)]


def norm(x):
    """An RMS norm in NumPy."""
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True))


def pre(x, f, layer):
    return x + f(norm(x))


def post(x, f, layer):
    return norm(x + f(x))


def sandwich(x, f, layer):
    return x + norm(f(norm(x)))


def mixed(x, f, layer):
    return post(x, f, layer) if layer == 1 else pre(x, f, layer)


def scaled(x, f, layer):
    return x + f(norm(x) / math.sqrt(layer))


def bare(x, f, layer):
    return x + f(x)


def norm_free(x, f, layer):
    return x + 0.2 * f(x / math.sqrt(1 + 0.08 * (layer - 1)))


def stream(x, f, layer):
    return norm(x) + f(norm(x))


FORMULAS = {  # (formula of a branch, or of both; embedding is normalised, the end is)
    "pre": (pre, False, True),
    "pre_open": (pre, False, False),
    "post": (post, False, False),
    "sandwich": (sandwich, False, True),
    "peri": (sandwich, True, True),
    "mix": (mixed, False, True),
    "scaled": (scaled, False, True),
    "none": (bare, False, False),
    "final": (bare, False, True),
    "norm_free": (norm_free, False, False),
    "carried": ((pre, stream), False, True),
    "carried_open": ((pre, stream), False, False),
}


def test_every_placement_has_a_formula():
    assert set(FORMULAS) == set(PLACEMENTS)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_formula(name):
    formulas, embedding, final = FORMULAS[name]
    formulas = formulas if isinstance(formulas, tuple) else (formulas,) * 2
    expected = norm(X) if embedding else X
    for layer, weight in enumerate(WEIGHTS, 1):
        for formula in formulas:
            expected = formula(expected, lambda h, w=weight: h @ w, layer)
    expected = norm(expected) if final else expected

    placement, suffixes = placement_of(name), []

    def apply_norm(suffix, x):
        suffixes.append(suffix)
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True))

    y = jnp.asarray(X, jnp.float32)
    y = apply_norm("", y) if placement.embedding else y
    for i, weight in enumerate(WEIGHTS):
        w = jnp.asarray(weight, jnp.float32)
        for place in placement.branches(i, DEPTH):
            y = residual(y, lambda h, w=w: h @ w, apply_norm, place)
    y = apply_norm("", y) if placement.final else y
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-5)
    assert ("_out" in suffixes) == (name in ("sandwich", "peri"))


@pytest.mark.parametrize(("fraction", "posts"), [(0, 0), (0.3, 3), (0.25, 2), (1, 10)])
def test_mix_counts_whole_layers(fraction, posts):
    layers = [mix(fraction).layer(i, 10) for i in range(10)]
    assert [layer.post for layer in layers] == [i < posts for i in range(10)]
    assert all(layer.post != layer.pre for layer in layers)


def test_placement_of():
    custom = mix(0.5)
    assert placement_of(custom) is custom
    with pytest.raises(UserError, match="unknown placement 'prre'; did you mean 'pre'"):
        placement_of("prre")


RATE = 0.25
BRANCH = jnp.asarray(RNG.normal(size=(4000, 2, 3)), jnp.float32)


def drop(rate, train):
    key = {"dropout": jax.random.key(0)}
    return StochasticDepth(rate).apply({}, BRANCH, train=train, rngs=key)


def test_stochastic_depth_drops_whole_examples():
    ratio = np.asarray(drop(RATE, train=True) / BRANCH).reshape(4000, -1)
    assert ((ratio != 0) == (ratio[:, :1] != 0)).all()
    kept = ratio[:, 0] != 0
    np.testing.assert_allclose(ratio[kept], 1 / (1 - RATE), rtol=1e-6)
    deviation = math.sqrt(RATE * (1 - RATE) / 4000)
    assert abs(kept.mean() - (1 - RATE)) < 4 * deviation


def test_stochastic_depth_is_the_identity_at_evaluation_and_at_rate_zero():
    np.testing.assert_array_equal(drop(RATE, train=False), BRANCH)
    np.testing.assert_array_equal(drop(0.0, train=True), BRANCH)


def test_rates_of_stochastic_depth_rise_linearly(monkeypatch):
    from normjax import models

    rates, call = [], StochasticDepth.__call__

    def note(self, x, *, train):
        rates.append(self.rate)
        return call(self, x, train=train)

    monkeypatch.setattr(StochasticDepth, "__call__", nn.compact(note))
    model = models.build(
        "vit",
        num_classes=2,
        dim=4,
        depth=3,
        num_heads=1,
        drop_path_rate=0.2,
        stem={"name": "patch", "patch_size": 4},
    )
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    np.testing.assert_allclose(rates, [0, 0, 0.1, 0.1, 0.2, 0.2])
