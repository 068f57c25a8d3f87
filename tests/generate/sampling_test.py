"""Sampling against the distribution that NumPy makes of the logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.errors import UserError
from normjax.generate import sample

LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 1.9, -3.0, 0.9])
COUNT = 20_000


def distribution(logits, temperature=1.0, top_k=None, top_p=None):
    """Probabilities in float64, token by token from the most probable on."""
    p = np.exp(logits / temperature)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[:top_k]
    total, kept, reached = sum(p[i] for i in order), [], 0.0
    for i in order:
        kept.append(i)
        reached += p[i] / total
        if top_p is not None and reached >= top_p:
            break
    q = np.zeros(len(p))
    q[kept] = p[kept] / p[kept].sum()
    return q


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def draw(logits, *arguments):
    rows = jnp.broadcast_to(logits, (COUNT, len(logits)))
    return sample(rows, jax.random.key(5), *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (1.0, None, None),
        (0.5, None, None),
        (2.0, 3, None),
        (1.0, 1, None),
        (1.0, 99, None),
        (1.0, None, 0.6),  # the second of 0.34, 0.31, 0.15 crosses it
        (1.0, None, 1e-6),
        (1.0, None, 1.0),
        (1.0, 4, 0.85),  # of all tokens, 0.85 takes one more
    ],
)
def test_frequencies(arguments):
    counts = np.bincount(draw(jnp.float32(LOGITS), *arguments), minlength=len(LOGITS))
    expected = COUNT * distribution(LOGITS, *arguments)
    np.testing.assert_array_equal(counts > 0, expected > 0)
    kept = expected > 0
    assert np.sum((counts - expected)[kept] ** 2 / expected[kept]) < 40


def test_rescaling_comes_before_top_p():
    """The case above tells the two orders apart."""
    both, alone = (distribution(LOGITS, 1.0, k, 0.85) for k in (4, None))
    assert (both > 0).sum() < (alone > 0).sum()


def test_of_equals_the_first_stay():
    logits = jnp.zeros(6).at[4].set(1.0)
    assert set(draw(logits, 1.0, 3, None).tolist()) == {4, 0, 1}
    assert set(draw(logits, 0.0, None, None).tolist()) == {4}


def test_rows_and_keys():
    """Every row has its own logits; keys decide, and only they."""
    logits = jnp.where(jnp.eye(5, dtype=bool), 50.0, 0.0)
    ways = ((0.0,), (1.0,), (1.0, 3), (1.0, None, 0.9))

    @jax.jit
    def every_way():
        return [sample(logits, jax.random.key(0), *arguments) for arguments in ways]

    for tokens in every_way():
        assert tokens.dtype == jnp.int32
        np.testing.assert_array_equal(tokens, np.arange(5))
    of_key = jax.jit(lambda key: sample(jnp.zeros((64, 9)), key))
    first, again, other = (of_key(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_extreme_logits():
    """What overflows on its way has its limit."""
    logits = jnp.array([[3e38, -3e38, 1.0], [-jnp.inf, 0.0, -jnp.inf]])
    cuts = ({}, {"top_k": 2}, {"top_p": 0.9})
    ways = [(t, cut) for t in (1e-6, 1.0, 1e6) for cut in cuts]

    @jax.jit
    def every_way():
        return [sample(logits, jax.random.key(0), t, **cut) for t, cut in ways]

    for way, tokens in zip(ways, every_way(), strict=True):
        np.testing.assert_array_equal(tokens, [0, 1], err_msg=str(way))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_what_it_refuses(arguments, name):
    with pytest.raises(UserError, match=name):
        sample(jnp.zeros((1, 3)), jax.random.key(0), **arguments)
