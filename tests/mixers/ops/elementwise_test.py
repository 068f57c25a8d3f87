"""Derivatives of the elementwise recurrence beside loops and finite differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.test_util import check_grads

from normjax.core.spmd import batch_divided
from normjax.mixers.ops.elementwise import recurrence


def inputs(length=9):
    rng = np.random.default_rng(0)
    a, b = rng.random((4, length, 3)), rng.normal(size=(4, length, 3))
    a[0, 3], a[1, 1:3] = 0, 1
    return a, b, rng.normal(size=(4, 3))


def loop(a, b, state):
    h, found = state, []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        found.append(h)
    return np.stack(found, 1)


@pytest.mark.usefixtures("x64")
def test_gradients_go_from_the_end():
    a, b, state = inputs()
    weights = np.random.default_rng(1).normal(size=b.shape)
    h = loop(a, b, state)
    g, expected = np.zeros_like(state), np.zeros_like(b)
    for t in reversed(range(a.shape[1])):
        g = expected[:, t] = weights[:, t] + g
        g = a[:, t] * g
    before = np.concatenate((state[:, None], h[:, :-1]), 1)
    found = jax.vjp(recurrence, *map(jnp.asarray, (a, b, state)))
    np.testing.assert_allclose(found[0], h, 1e-12)
    gradients = found[1](jnp.asarray(weights))
    chex.assert_trees_all_close(gradients, (expected * before, expected, g), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_derivatives():
    operands = tuple(map(jnp.asarray, inputs(4)))

    @jax.jit
    def loss(a, b, state):
        return jnp.sum(jnp.sin(recurrence(a, b, state)))

    check_grads(loss, operands, order=2, modes=("fwd", "rev"))
    check_grads(lambda a: loss(a, *operands[1:]), operands[:1], order=3, modes=("rev",))


@pytest.mark.usefixtures("x64")
def test_it_is_mapped_and_divided():
    a, b, state = inputs()
    expected = loop(a, b, state)
    operands = tuple(map(jnp.asarray, (a, b, state)))
    several = jax.tree.map(lambda t: jnp.stack((t, t), 1), operands)
    found = jax.vmap(recurrence, in_axes=1)(*several)
    np.testing.assert_allclose(found[1], expected, 1e-12)
    found = jax.vmap(recurrence, in_axes=(None, 1, None))(
        *operands[:1], several[1], state
    )
    np.testing.assert_allclose(found[0], expected, 1e-12)
    with batch_divided(Mesh(np.array(jax.devices()[:4]), ("data",)), ("data",)):
        gradient = jax.jit(jax.grad(lambda *t: jnp.sum(recurrence(*t))))(*operands)
        np.testing.assert_allclose(jax.jit(recurrence)(*operands), expected, 1e-12)
    plain = jax.grad(lambda *t: jnp.sum(recurrence(*t)))(*operands)
    np.testing.assert_allclose(gradient, plain, 1e-12)
