"""What is traced once: the program of before, and no Python work for it again."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from normjax.core.spmd import batch_divided, division
from normjax.core.tracing import traced_once


def test_traced_once_per_shape_and_the_program_stays():
    seen = []

    def plain(x, power):
        seen.append((x.shape, power))
        return jax.lax.platform_dependent(x, cpu=lambda x: x**power, default=jnp.sin)

    once = traced_once("power")(plain)

    def layers(function):
        return lambda x: function(function(x, 2), 2) + function(x, 3)

    x = np.arange(3.0, dtype=np.float32)
    program = jax.jit(layers(once)).lower(x)
    assert seen == [((3,), 2), ((3,), 3)]
    jax.make_jaxpr(jax.grad(lambda x: jnp.sum(layers(once)(x))))(x)
    assert len(seen) == 2
    assert program.as_text() == jax.jit(layers(plain)).lower(x).as_text()
    np.testing.assert_array_equal(jax.jit(layers(once))(x), x**4 + x**3)


def test_a_divided_batch_is_traced_anew():
    seen = []

    @traced_once()
    def seeing(x):
        seen.append(division())
        return x + 1

    x, mesh = np.arange(3.0, dtype=np.float32), Mesh(np.array(jax.devices()), ("data",))
    for _ in range(2):
        jax.make_jaxpr(lambda x: seeing(x))(x)
        with batch_divided(mesh, ("data",)):
            jax.make_jaxpr(lambda x: seeing(x))(x)
    assert seen == [None, (mesh, ("data",))]
