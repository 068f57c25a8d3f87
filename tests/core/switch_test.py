"""The switch against plain Python branching and `jax.lax.switch`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.switch import switch

X = jnp.array([0.3, -1.2, 2.0])
W = jnp.array([1.5, 0.5, -0.7])
CONSTANTS = {"count": jnp.int32(4), "shift": jnp.array([1.0, 2.0, 3.0])}


def product(constants, operands):
    return operands["x"] * operands["w"], constants["count"]


def shifted_sine(constants, operands):
    return jnp.sin(operands["x"]) + constants["shift"], constants["count"] + 1


def root(constants, operands):
    """Not a number where x < 0, and so is its gradient."""
    return jnp.sqrt(operands["x"]), constants["count"] + 2


BRANCHES = (product, shifted_sine, root)
OPERANDS = {"x": X, "w": W}


def loss(index, operands, constants=CONSTANTS):
    out, aux = switch(index, BRANCHES, constants, operands)
    return jnp.sum(out * jnp.array([1.0, -2.0, 0.5])), aux


def by_hand(index):
    """Values and gradients of `loss`, in NumPy."""
    x, w, c = (np.asarray(v, np.float64) for v in (X, W, [1.0, -2.0, 0.5]))
    if index == 0:
        return np.sum(c * x * w), {"x": c * w, "w": c * x}
    shift = np.array([1.0, 2.0, 3.0])
    return np.sum(c * (np.sin(x) + shift)), {"x": c * np.cos(x), "w": 0 * w}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_value_aux_and_gradient_are_those_of_the_branch_taken(index, wrap):
    function = wrap(jax.value_and_grad(loss, argnums=1, has_aux=True))
    (value, aux), gradient = function(jnp.int32(index), OPERANDS)
    expected, expected_gradient = by_hand(index)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert int(aux) == 4 + index
    chex.assert_trees_all_close(gradient, expected_gradient, rtol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_equals_lax_switch(index):
    def plain(operands):
        out, _ = jax.lax.switch(index, BRANCHES, CONSTANTS, operands)
        return jnp.sum(out * jnp.array([1.0, -2.0, 0.5]))

    ours = jax.grad(lambda o: loss(jnp.int32(index), o)[0])(OPERANDS)
    chex.assert_trees_all_close(ours, jax.grad(plain)(OPERANDS), rtol=1e-6)


def test_branches_not_taken_leave_no_trace():
    """The root of a negative number poisons neither value nor gradient."""
    value, gradient = jax.value_and_grad(lambda o: loss(jnp.int32(0), o)[0])(OPERANDS)
    chex.assert_tree_all_finite((value, gradient))


def test_residuals_do_not_grow_with_the_branches():
    def residual_size(branches):
        def function(x):
            return switch(jnp.int32(0), branches, (), x)[0]

        _, vjp = jax.vjp(function, jnp.ones((64, 64)))
        return sum(x.size for x in jax.tree.leaves(vjp) if hasattr(x, "size"))

    def branch(k):
        return lambda constants, x: (jnp.sin(x) * jnp.exp(k * x), ())

    one = residual_size((branch(1.0),))
    assert residual_size(tuple(branch(float(k)) for k in range(6))) <= one + 64


def test_vmap_over_the_index():
    indices = jnp.array([1, 0, 1])
    values, aux = jax.vmap(lambda i: loss(i, OPERANDS))(indices)
    expected = [by_hand(int(i))[0] for i in indices]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_array_equal(aux, [5, 4, 5])


def test_vmap_over_the_operands():
    xs = jnp.stack([X, 2 * X])
    gradient = jax.vmap(
        jax.grad(lambda x: loss(jnp.int32(1), {"x": x, "w": W})[0]),
    )(xs)
    expected = np.array([1.0, -2.0, 0.5]) * np.cos(np.asarray(xs, np.float64))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_gradient_of_the_gradient():
    def slope(x):
        return jnp.sum(jax.grad(lambda v: loss(jnp.int32(1), {"x": v, "w": W})[0])(x))

    second = jax.grad(slope)(X)
    expected = np.array([-1.0, 2.0, -0.5]) * np.sin(np.asarray(X, np.float64))
    np.testing.assert_allclose(second, expected, rtol=1e-5)


def test_constants_get_no_gradient():
    def of_shift(shift):
        constants = {"count": jnp.int32(0), "shift": shift}
        return loss(jnp.int32(1), OPERANDS, constants)[0]

    np.testing.assert_array_equal(jax.grad(of_shift)(X), np.zeros(3))
