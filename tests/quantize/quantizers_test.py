"""Quantizers against loops over float64 numbers, and what holds for all of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import quantize
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def exact():
    """What flips between two levels is decided in float64."""
    with jax.enable_x64(True):
        yield


def best_uniform(x, bits):
    """(s, z) by a search in NumPy."""
    found = []
    for q in (0.999, 0.9999, 0.99999):
        low, high = np.quantile(x, [1 - q, q])
        s = (high - low) / (2**bits - 1)
        z = np.round(-low / s)
        codes = np.clip(np.round(x / s) + z, 0, 2**bits - 1)
        found.append((np.mean(((codes - z) * s - x) ** 2), s, z))
    return min(found, key=lambda f: f[0])[1:]


@pytest.mark.parametrize("axis", [None, -1])
def test_uniform_ranges(axis):
    x = RNG.standard_t(3, size=(200, 3))
    made = quantize.calibrate_uniform(jnp.asarray(x), 3, axis)
    parts = [x] if axis is None else np.moveaxis(x, axis, 0)
    scales, zeros = np.transpose([best_uniform(part, 3) for part in parts])
    np.testing.assert_allclose(made.scale.ravel(), scales, rtol=1e-12)
    np.testing.assert_allclose(made.zero_point.ravel(), zeros)
    y = np.asarray(made(jnp.asarray(x)))
    assert all(
        len(np.unique(p)) <= 8
        for p in ([y] if axis is None else np.moveaxis(y, axis, 0))
    )
    inside = np.abs(y - x) < 0.501 * np.max(made.scale)
    assert inside.mean() > 0.95


def test_a_constant_stays():
    x = jnp.full((3, 2), 7.0)
    np.testing.assert_allclose(quantize.calibrate_uniform(x, 4)(x), x)
    np.testing.assert_allclose(quantize.calibrate_uniform(0 * x, 4, -1)(0 * x), 0)


def test_log_sqrt2():
    a = RNG.dirichlet(np.full(9, 0.3), size=(5, 6))
    made = quantize.calibrate_log_sqrt2(jnp.asarray(a), 3)
    levels = float(made.scale) * np.array([2 ** (-k / 2) for k in range(8)])
    expected = []
    for value in a.ravel():
        k = np.argmin(np.abs(np.log(levels / max(value, 1e-300))))
        small = value < levels[-1] * 2**-0.25
        expected.append(0.0 if small else levels[k])
    np.testing.assert_allclose(np.ravel(made(jnp.asarray(a))), expected, rtol=1e-12)
    assert made(jnp.array([0.0, 9.0])).tolist() == [0.0, float(made.scale)]
    assert float(made.scale) in np.quantile(a, quantize.uniform.QUANTILES)


@pytest.mark.parametrize(
    "calibrate", [quantize.calibrate_uniform, quantize.calibrate_log_sqrt2]
)
def test_no_bits(calibrate):
    with pytest.raises(UserError, match="bits must be at least 1, got 0"):
        calibrate(jnp.ones(3), 0)


@pytest.mark.parametrize("bias", [None, np.array([1.0, -2.0])])
def test_rescaled_norms_compute_the_same_with_the_same_codes(bias):
    x, g, t = RNG.normal(size=(30, 4)), RNG.uniform(0.5, 2, 4), RNG.normal(size=4)
    kernel, h = RNG.normal(size=(4, 2)), x * g + t
    scales, zeros = RNG.uniform(0.1, 0.6, 4), np.array([3.0, 7.0, 8.0, 12.0])
    channels = quantize.UniformQuantizer(*(v.reshape(1, 4) for v in (scales, zeros)), 4)
    given = (None if v is None else jnp.asarray(v) for v in (g, t, kernel, bias))
    layers, before = tuple(given), h @ kernel + (0 if bias is None else bias)
    codes = np.clip(np.round(h / scales) + zeros, 0, 15)
    for rounded, most in ((True, 1e-6), (False, 0.501)):
        new = quantize.rescale_norm(*layers, channels, round_zero_point=rounded)
        moved = x * np.asarray(new.scale) + np.asarray(new.bias)
        y = moved @ np.asarray(new.kernel) + np.asarray(new.linear_bias)
        np.testing.assert_allclose(y, before, rtol=1e-9, atol=1e-12)
        found = new.quantizer.codes(jnp.asarray(moved))
        assert np.abs(found - codes).max() < most
        assert float(new.quantizer.scale) == pytest.approx(scales.mean())
        assert float(new.quantizer.zero_point) == (8 if rounded else 7.5)


def test_asymmetric():
    x = RNG.normal(size=(5, 4))
    low, high, bits = x.min(0), x.max(0), 3
    s = 7 / (high - low)
    z = np.round(s * low) + 4
    codes = np.clip(np.round(s * x - z), -4, 3)
    found = quantize.quantize_outputs(jnp.asarray(x), bits)
    np.testing.assert_allclose(found, (codes + z) / s, rtol=1e-12)
    assert np.isfinite(quantize.quantize_outputs(jnp.zeros((2, 2)), bits)).all()


def test_allocations_by_trying_all():
    table, sizes = RNG.uniform(size=(4, 3)), [7, 3, 11, 5]
    bits = (2, 4, 8)
    every = []
    for choice in itertools.product(range(3), repeat=4):
        size = sum(n * bits[c] for n, c in zip(sizes, choice, strict=True))
        every.append((size, sum(table[i][c] for i, c in enumerate(choice)), choice))
    front = quantize.allocations(table, sizes, bits)
    beaten = lambda a: any(b[0] <= a[0] and b[1] < a[1] for b in every)  # noqa: E731
    best = sorted({(a[0], round(a[1], 9)) for a in every if not beaten(a)})
    assert [(a.size, round(a.sensitivity, 9)) for a in front] == best
    chosen = quantize.allocate_bits(table, sizes, bits, 120)
    within = min((a for a in every if a[0] <= 120), key=lambda a: a[1])
    assert chosen.bits == tuple(bits[c] for c in within[2])
    with pytest.raises(UserError, match="budget 51 is below 52"):
        quantize.allocate_bits(table, sizes, bits, 51)


def test_divergence():
    z, w = RNG.normal(size=(2, 5, 3))
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (z, w))
    expected = np.mean(np.sum(p * np.log(p / q), 1))
    found = quantize.divergence(jnp.asarray(z), jnp.asarray(w))
    assert float(found) == pytest.approx(expected)


def test_distilled_images_get_the_statistics():
    mean, var = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    x = np.array(quantize.first_images(jax.random.key(0), (3, 4, 4, 2)), np.float64)
    m, d = x.mean((1, 2)), x.var((1, 2), ddof=1)
    gaps = (m - mean) ** 2 + (np.sqrt(d + 1e-6) - np.sqrt(var + 1e-6)) ** 2
    loss = lambda x: quantize.statistics_distance(x, mean, var)  # noqa: E731
    assert float(loss(jnp.asarray(x))) == pytest.approx(gaps.sum() / 3)
    made, losses = quantize.distill_images(loss, jnp.asarray(x), steps=200, rate=0.05)
    assert losses[-1] < 1e-3 * losses[0]
    np.testing.assert_allclose(made.mean((1, 2)), [mean] * 3, atol=0.02)


def test_the_rate_falls_where_nothing_gets_better():
    """Of a constant gradient Adam moves by the rate itself."""

    def loss(x):
        return 5 + jnp.sum(x - jax.lax.stop_gradient(x))

    x, _ = quantize.distill_images(loss, jnp.zeros(1), steps=8, rate=1.0, patience=2)
    # The first is better than nothing, three are not, and the next go by a tenth.
    assert float(x[0]) == pytest.approx(-(4 * 1 + 3 * 0.1 + 0.01), rel=1e-5)


def test_rounding_and_noise():
    x = np.array([-1.7, -0.5, -0.36, 0.0, 0.1, 0.5, 0.7, 1.0])
    rounded = [np.sign(v) * np.ceil(abs(4 * v) - 0.5) / 4 for v in x]
    found, vjp = jax.vjp(lambda x: quantize.reduce_precision(x, 4), jnp.asarray(x))
    np.testing.assert_allclose(found, rounded)
    assert (vjp(jnp.ones(8))[0] == 1).all()
    draws = jax.random.uniform(jax.random.key(0), (4000,))
    many = quantize.reduce_precision(jnp.full(4000, 0.3), 4, uniform=draws)
    assert set(np.unique(many)) == {0.25, 0.5}
    assert float(many.mean()) == pytest.approx(0.3, abs=0.01)
    _, vjp = jax.vjp(quantize.clamp, jnp.asarray(x))
    assert vjp(jnp.ones(8))[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    noise = np.asarray(jax.random.normal(jax.random.key(1), (20000,)))
    std = quantize.noise_std(7, 0.2)
    assert np.mean(np.abs(std * noise) > 0.5 / 7) == pytest.approx(0.2, abs=0.01)
    behind = quantize.analog_output(jnp.zeros(9), jnp.full(9, 3.0), 7, 0.25)
    before = quantize.analog_input(jnp.full(9, 3.0), jnp.full(9, 3.0), 7, 0.25)
    np.testing.assert_allclose([behind[0], before[0]], [5 / 7, 1.75])
    with pytest.raises(UserError, match="leakage"):
        quantize.noise_std(7, 1.0)
