"""Linear attention as each platform computes it, against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.mixers.ops.linear_attention import linear_attention

EPSILON = 0.1


def by_sums(q, k, v):
    weights = np.einsum("bnhk,bmhk->bhnm", q, k)
    o = np.einsum("bhnm,bmhv->bnhv", weights, v)
    return o / (np.einsum("bhnm->bnh", weights) + EPSILON)[..., None]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("n", "m"), [(11, 13), (2, 3)])  # both orders of the products
def test_every_platform_computes_the_same(platform, n, m, monkeypatch):
    def chosen(*operands, default, **branches):
        return branches.get(platform, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    rng = np.random.default_rng(n)
    q, k = (np.abs(rng.normal(size=(2, size, 3, 4))) for size in (n, m))
    v, dy = rng.normal(size=(2, m, 3, 5)), rng.normal(size=(2, n, 3, 5))
    with jax.enable_x64(True):
        y, backward = jax.vjp(
            lambda *t: linear_attention(*t, epsilon=EPSILON),
            *(jnp.asarray(t) for t in (q, k, v)),
        )
        _, dk, dv = map(np.asarray, backward(jnp.asarray(dy)))
    np.testing.assert_allclose(y, by_sums(q, k, v), rtol=1e-12, atol=1e-12)
    step = 1e-6 * rng.normal(size=k.shape)
    ends = (np.sum(dy * by_sums(q, k + s * step, v)) for s in (0.5, -0.5))
    np.testing.assert_allclose(np.sum(dk * step), next(ends) - next(ends), rtol=1e-6)
    assert np.sum(dv * v) == pytest.approx(np.sum(dy * by_sums(q, k, v)))  # linear in v
