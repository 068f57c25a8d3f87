"""A handwritten backward pass under every transformation, forward mode included."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from normjax.core.backward import custom_backward

CALLS = []


@functools.partial(custom_backward, nondiff_argnums=(2,))
def by_hand(x, scales, power):
    """Of a tree, with an integer, and a second result that carries no gradient."""
    scale, number = scales
    y = jnp.sin(x) * scale**power * number
    return y, jax.lax.stop_gradient(jnp.sum(x))


def _forward(x, scales, power):
    return by_hand(x, scales, power), (x, scales)


def _backward(power, saved, cotangents):
    CALLS.append(power)
    (x, (scale, number)), (dy, _) = saved, cotangents
    slope = jnp.sum(dy * jnp.sin(x)) * power * scale ** (power - 1) * number
    return dy * jnp.cos(x) * scale**power * number, (slope, jnp.zeros(()))


by_hand.defvjp(_forward, _backward)


NUMBER = 2


def loss(x, scale):
    return jnp.sum(by_hand(x, (scale, NUMBER), 3)[0] ** 2)


def plain(x, scale):
    return jnp.sum((jnp.sin(x) * scale**3 * NUMBER) ** 2)


def mapped(f):
    return lambda x, scale: jax.vmap(f, (0, None))(jnp.stack([x, x + 1, x - 1]), scale)


def summed(f):
    return lambda x, scale: mapped(f)(x, scale).sum()


def scanned(f):
    def total(x, scale):
        def body(carry, _):
            return carry + f(carry, scale) / 100, None

        return jnp.sum(jax.lax.scan(body, x, length=3)[0])

    return total


BOTH = (0, 1)
TRANSFORMATIONS = {
    "grad": lambda f: jax.grad(f, BOTH),
    "grad of one": lambda f: jax.grad(f, 1),
    "jit": lambda f: jax.jit(jax.grad(f, BOTH)),
    "forward": lambda f: jax.jacfwd(f, BOTH),
    "hessian": lambda f: jax.jit(jax.hessian(f, BOTH)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f, BOTH), BOTH),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f, BOTH), BOTH),
    "vmap of grad": lambda f: mapped(jax.grad(f, BOTH)),
    "grad of vmap": lambda f: jax.grad(summed(f), BOTH),
    "forward of vmap": lambda f: jax.jacfwd(summed(f), BOTH),
    "remat": lambda f: jax.grad(jax.checkpoint(f), BOTH),
    "scan": lambda f: jax.grad(scanned(f), BOTH),
    "forward of scan": lambda f: jax.jacfwd(scanned(f), BOTH),
}


@pytest.mark.parametrize(
    "transformation", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS
)
def test_derivatives_are_those_of_the_function(transformation):
    at = jnp.array([0.3, -0.7, 1.2]), jnp.float32(1.1)
    expected = transformation(plain)(*at)
    chex.assert_trees_all_close(
        transformation(loss)(*at), expected, rtol=2e-4, atol=1e-4
    )


def test_reverse_mode_is_what_was_written():
    CALLS.clear()
    x = jnp.ones(3)
    jax.jacfwd(loss)(x, 1.0)
    assert not CALLS
    _, pull = jax.vjp(lambda x: by_hand(x, (1.0, NUMBER), 3), x)
    (dx,) = pull((jnp.ones(3), jnp.float32(7)))
    assert CALLS == [3]
    chex.assert_trees_all_close(dx, jnp.cos(x) * NUMBER)
