"""Similarities and banks by loops in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from normjax import adapt

RNG = np.random.default_rng(0)
S, BANK = (RNG.uniform(-1, 1, (n, 7)).astype(np.float32) for n in (9, 5))


def test_banks():
    below = np.exp(3 * BANK).sum(0)
    inverted = np.exp(3 * S) / below
    np.testing.assert_allclose(
        adapt.inverted_softmax(S, BANK, 3.0), inverted, rtol=1e-5
    )
    items = {i for row in BANK for i in np.argsort(-row)[:2]}
    assert set(np.flatnonzero(adapt.activation_set(jnp.asarray(BANK), 2))) == items
    chosen = np.array([row.argmax() in items for row in S])
    assert 0 < chosen.sum() < 9
    found = adapt.is_activated(jnp.asarray(S), jnp.asarray(BANK), 2)
    np.testing.assert_array_equal(found, chosen)
    for raw, others in ((False, np.exp(3 * S)), (True, S)):
        expected = np.where(chosen[:, None], inverted, others)
        given = {"k": 2, "raw": raw}
        made = adapt.dynamic_inverted_softmax(
            jnp.asarray(S), jnp.asarray(BANK), 3.0, **given
        )
        np.testing.assert_allclose(made, expected, rtol=1e-5)
    weights = np.exp(3 * S) / np.exp(3 * S).sum(0)
    np.testing.assert_allclose(
        adapt.dual_softmax(jnp.asarray(S), 3.0), S * weights, rtol=1e-5
    )


def test_large_temperatures_do_not_overflow():
    same = adapt.inverted_softmax(jnp.ones((2, 3)), jnp.ones((4, 3)), 1e4)
    np.testing.assert_allclose(same, 0.25)


def test_hubs():
    counts = np.zeros(7, int)
    for row in S:
        counts[np.argsort(-row)[:3]] += 1
    found = adapt.k_occurrence(jnp.asarray(S), 3)
    np.testing.assert_array_equal(found, counts)
    skew = scipy.stats.skew(counts)
    assert float(adapt.skewness(found)) == pytest.approx(skew, rel=1e-5)
