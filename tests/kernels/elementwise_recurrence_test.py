"""The kernel beside a loop in float64, from the beginning and from the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.elementwise_recurrence import elementwise_recurrence, fits
from normjax.mixers import decay
from normjax.plan.topology import devices_of, prepare

CALL = "tpu_custom_call"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length,channels", [(128, 1100), (200, 24)])
def test_it_is_the_recurrence(length, channels, reverse):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, length, channels)), rng.normal(size=(2, length, channels))
    a[:, 9], a[:, 20:40], state = 0, 1, rng.normal(size=(2, channels))
    h, expected = state, np.zeros_like(b)
    for t in range(length)[:: -1 if reverse else 1]:
        if reverse:
            h = b[:, t] + (a[:, t + 1] * h if t + 1 < length else 0)
        else:
            h = a[:, t] * h + b[:, t]
        expected[:, t] = h
    a, b, state = (jnp.asarray(t, jnp.float32) for t in (a, b, state))
    assert fits(a)
    if reverse:
        state = 0 * state
    found = jax.jit(
        lambda *t: elementwise_recurrence(*t, reverse=reverse, interpret=True)
    )(a, b, state)
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_what_does_not_fit():
    assert not fits(jnp.zeros((1, 127, 8)))
    assert not fits(jnp.zeros((1, 128, 8), jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_tpu_has_it_both_ways(chip):
    prepare([chip])
    where = jax.sharding.SingleDeviceSharding(devices_of(chip)[0])
    for length, channels in ((4096, 1536), (200, 96)):
        shape = (2, length, channels)
        x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

        def loss(a, b):
            return jnp.sum(decay.diagonal(a, b)[0] ** 2)

        text = jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile().as_text()
        assert text.count(f'custom_call_target="{CALL}"') == 2
