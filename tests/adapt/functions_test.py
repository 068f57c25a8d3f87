"""Alpha-BN, UnMix-TNS and LAME against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import adapt
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3, 2, 4)) + RNG.normal(size=(5, 1, 1, 4))
MEAN, VAR = RNG.normal(size=4), RNG.uniform(0.5, 2, 4)
SCALE, BIAS = RNG.normal(size=4), RNG.normal(size=4)
MEANS, VARS = RNG.normal(size=(3, 4)), RNG.uniform(0.5, 2, (3, 4))


@pytest.fixture(autouse=True)
def _wide(x64):
    """All of it in float64."""


def mixed_moments(x, weight, ddof):
    rows = x.reshape(-1, x.shape[-1])
    mean = (1 - weight) * MEAN + weight * rows.mean(0)
    return mean, (1 - weight) * VAR + weight * rows.var(0, ddof=ddof)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unbiased", [True, False])
def test_alpha_batch_normalization(weight, unbiased):
    run = functools.partial(
        adapt.alpha_batch_normalize, batch_weight=weight, unbiased=unbiased, epsilon=0.1
    )
    mean, var = mixed_moments(X, weight, int(unbiased))
    y, vjp = jax.vjp(lambda x: run(x, MEAN, VAR, SCALE, BIAS), jnp.asarray(X))
    np.testing.assert_allclose(
        y, (X - mean) / np.sqrt(var + 0.1) * SCALE + BIAS, rtol=1e-12
    )
    dy = RNG.normal(size=X.shape)  # the statistics are constants
    np.testing.assert_allclose(vjp(dy)[0], dy * SCALE / np.sqrt(var + 0.1), rtol=1e-12)


def shares_of(x, temperature):
    shares = np.zeros((len(x), len(MEANS)))
    for i, example in enumerate(x):
        m = example.reshape(-1, x.shape[-1]).mean(0)
        cosine = [m @ k / np.linalg.norm(m) / np.linalg.norm(k) for k in MEANS]
        shares[i] = np.exp(np.array(cosine) / temperature)
        shares[i] /= shares[i].sum()
    return shares


def unmixed(x, shares, momentum):
    """Output and next components, example by example."""
    y, d_means, d_vars = np.zeros_like(x), np.zeros_like(MEANS), np.zeros_like(VARS)
    for i, example in enumerate(x):
        rows, p = example.reshape(-1, x.shape[-1]), shares[i][:, None]
        m, v = rows.mean(0), rows.var(0)
        means, variances = (1 - p) * MEANS + p * m, (1 - p) * VARS + p * v
        mean = means.mean(0)
        var = variances.mean(0) + (means**2).mean(0) - mean**2
        y[i] = (example - mean) / np.sqrt(var + 0.1) * SCALE + BIAS
        d_means += momentum * p * (m - MEANS) / len(x)
        d_vars += momentum * p * (v - VARS) / len(x)
    return y, MEANS + d_means, VARS + d_vars


def test_unmixing_of_statistics():
    shares = shares_of(X, 0.3)
    assert shares.max() > 0.6 and shares.std(0).max() > 0.05

    @jax.jit
    def run(x, dy):
        forward = functools.partial(
            adapt.unmix_normalize, momentum=0.2, temperature=0.3, epsilon=0.1
        )
        y, vjp, state = jax.vjp(
            lambda x: forward(x, MEANS, VARS, SCALE, BIAS), x, has_aux=True
        )
        return y, state, vjp(dy)[0]

    dy = RNG.normal(size=X.shape)
    y, state, dx = run(X, dy)
    expected, *components = unmixed(X, shares, 0.2)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state, components, rtol=1e-12)
    for index in [(0, 0, 0, 0), (2, 1, 1, 3), (4, 2, 0, 1)]:  # shares are constants
        step = np.zeros_like(X)
        step[index] = 1e-6
        moved = [unmixed(X + s * step, shares, 0.2)[0] for s in (1, -1)]
        difference = np.sum((moved[0] - moved[1]) * dy) / 2e-6
        np.testing.assert_allclose(dx[index], difference, rtol=1e-7, atol=1e-8)


def test_components_start_around_the_source():
    key = jax.random.key(0)
    means, variances = adapt.split_components(key, MEAN, jnp.asarray(VAR), 4000)
    np.testing.assert_allclose(means.mean(0), MEAN, atol=0.05)
    np.testing.assert_allclose(means.var(0), VAR * 0.5 * 4000 / 3999, rtol=0.1)
    np.testing.assert_allclose(variances, np.broadcast_to(VAR / 2, (4000, 4)))
    # As one mixture they have the variance of the source.
    mixture = variances.mean(0) + means.var(0)
    np.testing.assert_allclose(mixture, VAR, rtol=0.06)
    one = adapt.split_components(key, MEAN, jnp.asarray(VAR), 1)
    np.testing.assert_array_equal(one, [[MEAN], [VAR]])


FEATURES = RNG.normal(size=(9, 5))
PROBABILITIES = RNG.dirichlet(np.ones(4), 9)


def kernel_by_loops(kind, neighbours):
    unit = np.array([f / np.linalg.norm(f) for f in FEATURES])
    count = len(unit)
    if kind == "linear":
        return unit @ unit.T
    distance = np.array([[np.linalg.norm(a - b) for b in unit] for a in unit])
    if kind == "rbf":
        width = np.mean([sorted(row)[neighbours - 1] for row in distance])
        return np.exp(-(distance**2) / (2 * width**2))
    kernel = np.zeros((count, count))
    for i, row in enumerate(distance):
        others = sorted((j for j in range(count) if j != i), key=lambda j: row[j])
        kernel[i, others[:neighbours]] = 1
    return kernel


@pytest.mark.parametrize("kind", ["knn", "rbf", "linear"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_affinities(kind, symmetric):
    kernel = adapt.affinity(FEATURES, kind, neighbours=3, symmetric=symmetric)
    expected = kernel_by_loops(kind, 3)
    expected = (expected + expected.T) / 2 if symmetric else expected
    np.testing.assert_allclose(kernel, expected, rtol=1e-12, atol=1e-12)


def softmax(rows):
    e = np.exp(rows - rows.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_laplacian_adjustment_until_it_stands_still(weight):
    kernel, u = kernel_by_loops("rbf", 3), -np.log(PROBABILITIES + 1e-10)
    run = jax.jit(adapt.laplacian_adjusted, static_argnames="max_steps")
    y, energy, done = softmax(-u), np.inf, False
    for step in range(100):
        if not done:
            pull = weight * kernel @ y
            y = softmax(pull - u)
            new = np.sum(u * y - pull * y + y * np.log(y))
            done = step > 1 and abs(new - energy) <= 1e-8 * abs(energy)
            energy = new
        if step in (0, 2, 99):
            made = run(PROBABILITIES, kernel, weight=weight, max_steps=step + 1)
            np.testing.assert_allclose(made, y, rtol=1e-10, atol=1e-12)
    assert done
    if weight == 0:
        np.testing.assert_allclose(y, PROBABILITIES, atol=1e-9)


def test_unknown_affinity():
    with pytest.raises(UserError, match="unknown affinity 'rbg'; did you mean 'rbf'"):
        adapt.affinity(FEATURES, "rbg")
