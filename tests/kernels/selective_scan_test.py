"""The kernels beside a recurrence in float64 and one that goes back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.scan_layout import fits
from normjax.kernels.selective_scan import selective_scan
from normjax.kernels.selective_scan_gradient import gradients
from normjax.mixers.ops.selective_scan import chunked
from normjax.plan.topology import devices_of, prepare

NAMES = ("u", "delta", "a", "b", "c", "skip", "state")

# batch, length, channels, groups, states
CASES = {
    "two blocks": (1, 140, 136, 1, 16, jnp.float32),
    "groups that share a register": (1, 64, 96, 4, 8, jnp.float32),
    "a group of two parts": (1, 70, 264, 1, 37, jnp.bfloat16),
}


def drawn(batch, length, channels, groups, states, dtype):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(batch, length, channels))
    b, c = rng.normal(size=(2, batch, length, groups, states))
    delta = rng.exponential(0.5, u.shape)
    delta[:, 2], delta[:, 9] = 0, 30  # padding, and nothing of before is left
    a, skip = -rng.exponential(1.0, (channels, states)), rng.normal(size=channels)
    state = rng.normal(size=(batch, channels, states))
    narrow = (jnp.asarray(t, dtype) for t in (u, delta, b, c))
    u, delta, b, c = narrow
    a, skip, state = (jnp.asarray(t, jnp.float32) for t in (a, skip, state))
    return u, delta, a, b, c, skip, state


def recurrence(u, delta, a, b, c, skip, state, dy, dlast):
    """(y, last) and the gradients."""
    u, delta, a, b, c, skip, state = map(np.float64, (u, delta, a, b, c, skip, state))
    groups, channels = b.shape[2], u.shape[2]
    wide_b, wide_c = (np.repeat(t, channels // groups, 2) for t in (b, c))
    decay = np.exp(delta[..., None] * a)
    h, y = [state], np.empty(u.shape)
    for t in range(u.shape[1]):
        added = (delta[:, t] * u[:, t])[..., None] * wide_b[:, t]
        h.append(decay[:, t] * h[-1] + added)
        y[:, t] = (h[-1] * wide_c[:, t]).sum(-1) + skip * u[:, t]
    rest, g, s = dlast.copy(), np.empty(decay.shape), np.empty(decay.shape)
    for t in reversed(range(u.shape[1])):
        g[:, t] = rest + wide_c[:, t] * dy[:, t, :, None]
        rest = decay[:, t] * g[:, t]
        s[:, t] = rest * h[t]
    dx = (g * wide_b).sum(-1)
    dadded = g * (delta * u)[..., None]
    read = np.stack(h[1:], 1) * dy[..., None]
    db, dc = (t.reshape(*b.shape[:3], -1, b.shape[3]).sum(3) for t in (dadded, read))
    du, ddelta = dx * delta + skip * dy, dx * u + (s * a).sum(-1)
    da, dskip = (s * delta[..., None]).sum((0, 1)), (u * dy).sum((0, 1))
    return (y, h[-1]), (du, ddelta, da, db, dc, dskip, rest)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    operands = drawn(*CASES[case])
    rng = np.random.default_rng(1)
    dy, dlast = (rng.normal(size=operands[i].shape).astype("f") for i in (0, -1))
    run = functools.partial(selective_scan, each=True, interpret=True)
    y, last, kept = jax.jit(run)(*operands)
    back = functools.partial(gradients, interpret=True)
    found = jax.jit(back)(*operands[:-1], kept, dy, dlast)
    values, expected = recurrence(*operands, dy, dlast)
    for actual, value in zip((y, last), values, strict=True):
        np.testing.assert_allclose(actual, value, 5e-5, 5e-5)
    for name, actual, e in zip(NAMES, found, expected, strict=True):
        allowed = 2**-8 if actual.dtype == jnp.bfloat16 else 1e-5
        actual = np.float64(actual)
        assert np.linalg.norm(actual - e) <= allowed * np.linalg.norm(e), name


def test_what_does_not_fit():
    def shapes(length=64, channels=64, groups=2, states=4, dtype=jnp.float32):
        u = jax.ShapeDtypeStruct((2, length, channels), dtype)
        b = jax.ShapeDtypeStruct((2, length, groups, states), dtype)
        a = jax.ShapeDtypeStruct((channels, states), jnp.float32)
        return u, u, a, b, b, None

    assert fits(*shapes())
    assert fits(*shapes(states=64, dtype=jnp.bfloat16))
    for wrong in ({"length": 63}, {"channels": 30}, {"states": 3}, {"states": 65}):
        assert not fits(*shapes(**wrong))
    assert not fits(*shapes(dtype=np.float64))
    state = jax.ShapeDtypeStruct((2, 64, 4), np.float64)
    assert not fits(*shapes(), state)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_tpu_has_it_both_ways(chip):
    """And it leaves no array of all states: those before blocks are the largest."""
    prepare([chip])
    where = jax.sharding.SingleDeviceSharding(devices_of(chip)[0])

    def loss(*given):
        y, last = chunked(*given)
        return jnp.sum(y**2) + jnp.sum(last)

    for case in (
        (2, 256, 1024, 1, 16, jnp.float32),
        (1, 196, 600, 2, 64, jnp.bfloat16),
        (1, 196, 64, 16, 4, jnp.bfloat16),
    ):
        shapes = jax.eval_shape(functools.partial(drawn, *case))
        shapes = [
            jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=where) for t in shapes
        ]
        compiled = jax.jit(jax.grad(loss, tuple(range(7)))).lower(*shapes).compile()
        assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
        states = np.prod(case[:3]) * case[4] * 4
        small = 2**20  # where the layout of so few numbers takes more
        assert compiled.memory_analysis().temp_size_in_bytes < max(states, small)
