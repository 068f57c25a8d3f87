"""Softmax attention against float64 NumPy, with bias, masks and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.mixers.ops.attend import softmax_attention

RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(2, 7, 3, 8)), *RNG.normal(size=(2, 2, 9, 3, 8))
BIAS = RNG.normal(size=(1, 3, 7, 9))
MASK = RNG.random((2, 1, 1, 9)) < 0.6
MASK[..., 0] = True

CASES = {
    "plain": {},
    "bias": dict(bias=BIAS),
    "mask": dict(mask=MASK),
    "causal": dict(causal=True),
    "all": dict(bias=BIAS, mask=MASK, causal=True, scale=0.3),
}


def expected(q, k, v, bias=0.0, mask=True, causal=False, scale=8**-0.5):
    logits = scale * np.einsum("bnhk,bmhk->bhnm", q, k) + bias
    logits = np.where(mask, logits, -np.inf)
    if causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bmhv->bnhv", weights, v)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype,limit", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_values(case, dtype, limit):
    arrays = [jnp.asarray(t, dtype) for t in (Q, K, V)]
    y = softmax_attention(*arrays, **CASES[case])
    assert y.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected(Q, K, V, **CASES[case]), atol=limit
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_finite_differences(case):
    options, h = CASES[case], 1e-6
    dy, direction = RNG.normal(size=Q.shape), RNG.normal(size=(3, *K.shape))
    steps = direction[0][:, :7], direction[1], direction[2]
    with jax.enable_x64(True):
        gradients = jax.grad(
            lambda *t: jnp.sum(softmax_attention(*t, **options) * dy), (0, 1, 2)
        )(*map(jnp.asarray, (Q, K, V)))
        slope = sum(
            float(jnp.sum(g * d)) for g, d in zip(gradients, steps, strict=True)
        )

    def value(t):
        moved = [a + t * d for a, d in zip((Q, K, V), steps, strict=True)]
        return np.sum(expected(*moved, **options) * dy)

    assert slope == pytest.approx((value(h) - value(-h)) / (2 * h), rel=1e-6)


def test_a_query_without_any_key_gets_a_finite_mean():
    y = softmax_attention(
        *(jnp.asarray(t, jnp.float32) for t in (Q, K, V)), mask=MASK & False
    )
    np.testing.assert_allclose(
        y, np.broadcast_to(V.mean(1)[:, None], y.shape), atol=1e-5
    )
