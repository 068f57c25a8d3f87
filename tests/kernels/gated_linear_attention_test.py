"""The kernel beside the recurrence in float64, position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.chunk_sizes import fits
from normjax.kernels.gated_linear_attention import gated_linear_attention
from normjax.mixers import decay
from normjax.plan.topology import devices_of, prepare

CALL = "tpu_custom_call"

# kind of decay, heads, K, V, length: registers that heads share and do not fill,
# heads wider than a register, lengths that are no whole chunks
CASES = [
    ("none", 1, 256, 128, 66),
    ("none", 3, 32, 64, 64),
    ("head", 3, 64, 64, 200),
    ("head", 6, 32, 32, 70),
    ("channel", 3, 64, 64, 100),
    ("channel", 1, 128, 256, 64),
    ("channel", 2, 64, 32, 130),
]


def drawn(kind, heads, keys, values, length):
    """q, k, v, log decays with strong ones and none at all among them, a state."""
    rng = np.random.default_rng(0)
    shape = (2, length, heads)
    q, k = rng.normal(size=(2, *shape, keys))
    v, state = (
        rng.normal(size=(*shape, values)),
        rng.normal(size=(2, heads, keys, values)),
    )
    g = -rng.exponential(0.2, (*shape, keys))
    for strong in (-np.inf, -1e4, 0.0):
        g = np.where(rng.random(g.shape) < 0.1, strong, g)
    g = {"none": None, "head": g[..., :1], "channel": g}[kind]
    narrow = [jnp.asarray(t, jnp.bfloat16) for t in (q, k, v)]
    wide = [None if t is None else jnp.asarray(t, jnp.float32) for t in (g, state)]
    return *narrow, *wide


def one_by_one(q, k, v, g, state):
    q, k, v, state = (np.asarray(t, np.float64) for t in (q, k, v, state))
    d = np.exp(np.zeros((1, 1, 1)) if g is None else np.asarray(g, np.float64))
    d, out = np.broadcast_to(d, k.shape), []
    for t in range(q.shape[1]):
        state = d[:, t, ..., None] * state + k[:, t, ..., None] * v[:, t, :, None]
        out.append((q[:, t, ..., None] * state).sum(2))
    return np.stack(out, 1), state


@pytest.mark.parametrize("kind,heads,keys,values,length", CASES)
def test_it_is_the_recurrence(kind, heads, keys, values, length):
    operands = drawn(kind, heads, keys, values, length)
    q, _, v, g, state = operands
    assert fits(q, v, g, state)
    apply = jax.jit(lambda *t: gated_linear_attention(*t, interpret=True))
    for found, expected in zip(apply(*operands), one_by_one(*operands), strict=True):
        assert found.dtype == jnp.float32
        # of weights, states and keys half a unit in the last place of 8 bits each
        np.testing.assert_allclose(found, expected, 0, 2**-7 * np.abs(expected).max())


def test_a_start_leaves_nothing():
    """With a decay of 0 what comes behind is the same to the last bit."""
    for kind in ("head", "channel"):
        q, k, v, g, state = drawn(kind, 2, 64, 64, 128)
        g = g.at[:, 70].set(-jnp.inf)
        run = jax.jit(lambda *t: gated_linear_attention(*t, interpret=True))
        o, last = run(q, k, v, g, state)
        other, same = run(q, k.at[:, :70].mul(8), v.at[:, :70].mul(8), g, 0 * state)
        np.testing.assert_array_equal(o[:, 70:], other[:, 70:])
        np.testing.assert_array_equal(last, same)


def test_what_does_not_fit():
    q, _, v, g, state = drawn("head", 2, 64, 64, 64)
    assert fits(q, v, g, state)
    assert not fits(q[:, :63], v, g, state)
    assert not fits(q[..., :48], v, g, state)
    assert not fits(q, v[..., :16], g, state)
    assert not fits(q, v, g, jax.ShapeDtypeStruct(state.shape, np.float64))
    for heads, found in ((256, True), (257, False)):  # in parts of whole registers
        many = jax.ShapeDtypeStruct((1, 64, heads, 32), jnp.bfloat16)
        assert fits(many, many, many, state) == found


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_tpu_has_it(chip):
    """In `decay.chunked` of bfloat16, of all its sizes, and for gradients."""
    prepare([chip])
    where = jax.sharding.SingleDeviceSharding(devices_of(chip)[0])

    def text(function, *given):
        shapes = [
            jax.ShapeDtypeStruct((2, 256, *t.shape[2:]), t.dtype, sharding=where)
            for t in drawn(*given, 1)[:4]
            if t is not None
        ]
        return jax.jit(function).lower(*shapes).compile().as_text()

    for kind, *sizes in (
        ("none", 3, 32, 64),
        ("head", 3, 64, 64),
        ("head", 2, 128, 256),
        ("channel", 4, 64, 128),
        ("channel", 4, 32, 32),
        ("channel", 8, 256, 256),
    ):
        assert CALL in text(decay.chunked, kind, *sizes)
    both = jax.value_and_grad(lambda *t: jnp.sum(decay.chunked(*t)[0] ** 2), (0, 2, 3))
    compiled = text(both, "channel", 2, 64, 64)
    assert compiled.count(f'custom_call_target="{CALL}"') == 4
