"""Gradients by kernels beside a recurrence in float64 that goes back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.kernels.gated_linear_attention_gradient import gradients
from tests.kernels.gated_linear_attention_test import drawn

NAMES = ("q", "k", "v", "log_decay", "state")


def going_back(q, k, v, g, state, do, dlast):
    q, k, v, state, do, dlast = (np.float64(t) for t in (q, k, v, state, do, dlast))
    d = np.ones((1, 1, 1, 1)) if g is None else np.exp(np.float64(g))
    d, states = np.broadcast_to(d, k.shape)[..., None], [state]
    for t in range(q.shape[1]):
        added = k[:, t, ..., None] * v[:, t, :, None]
        states.append(d[:, t] * states[-1] + added)
    r, found = dlast, []
    for t in reversed(range(q.shape[1])):
        r = r + q[:, t, ..., None] * do[:, t, :, None]
        dq = (states[t + 1] * do[:, t, :, None]).sum(-1)
        dk, dv = (r * v[:, t, :, None]).sum(-1), (r * k[:, t, ..., None]).sum(-2)
        r = d[:, t] * r
        found.append((dq, dk, dv, (states[t] * r).sum(-1)))
    dq, dk, dv, dg = (np.stack(t[::-1], 1) for t in zip(*found, strict=True))
    if g is not None and g.shape[-1] == 1:
        dg = dg.sum(-1, keepdims=True)
    return dq, dk, dv, None if g is None else dg, r


@pytest.mark.parametrize(
    "kind,heads,keys,values,length",
    [("none", 3, 32, 64, 70), ("head", 3, 64, 64, 150), ("channel", 2, 64, 32, 150)],
)
def test_gradients(kind, heads, keys, values, length):
    """Those of decays are differences of sums of numbers with 2**-9 of error each."""
    operands = drawn(kind, heads, keys, values, length)
    rng = np.random.default_rng(1)
    do = jnp.asarray(rng.normal(size=operands[2].shape), jnp.bfloat16)
    dlast = jnp.asarray(rng.normal(size=operands[-1].shape), jnp.float32)
    apply = jax.jit(functools.partial(gradients, interpret=True))
    found = apply(*operands, do.astype(jnp.float32), dlast)
    expected = going_back(*operands, do, dlast)
    for name, a, e in zip(NAMES, found, expected, strict=True):
        if e is not None:
            allowed = 2**-6 if name == "log_decay" else 2**-8
            assert np.linalg.norm(a - e) <= allowed * np.linalg.norm(e), name
    if kind != "none":
        assert not np.any(found[3][np.isneginf(operands[3])])
