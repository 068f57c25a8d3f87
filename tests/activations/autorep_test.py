"""AutoReP's module against the paper's loop, whose parameters are overwritten."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import activations
from normjax.core.errors import UserError

SHAPE, CHANNELS, UPDATES, RATE = (2, 3, 4), 4, 23, 0.05
THRESHOLD, CLIP, FLOOR = 0.02, 0.11, 0.5


def fit(mean, std):
    """Least squares of max(x, 0) at x ~ N(mean, std^2), by quadrature: [3, C]."""
    nodes, weights = np.polynomial.legendre.leggauss(120)
    columns = []
    for m, s in zip(mean, std, strict=True):
        gram, moments = np.zeros((3, 3)), np.zeros(3)
        for low, high in ((-10.0, -m / s), (-m / s, 10.0)):  # of the kink, both sides
            x = (low + high) / 2 + (high - low) / 2 * nodes
            w = (high - low) / 2 * weights * np.exp(-(x**2) / 2)
            z = m + s * x
            powers = np.stack([np.ones_like(z), z, z**2])
            gram += (powers * w) @ powers.T
            moments += (powers * w) @ np.maximum(z, 0)
        columns.append(np.linalg.solve(gram, moments))
    return np.stack(columns, -1)


def by_hand(xs, dys, alpha):
    """y of every update, and the last alpha, mask and polynomial."""
    poly, mask = fit(np.zeros(CHANNELS), np.ones(CHANNELS)), np.ones(SHAPE)
    mean, var, ys = np.zeros(CHANNELS), np.ones(CHANNELS), []
    for count, (x, dy) in enumerate(zip(xs, dys, strict=True), 1):
        mask = np.where(mask == 1, alpha > -THRESHOLD, alpha > THRESHOLD) * 1.0
        flat = x.reshape(-1, CHANNELS)
        mean = 0.9 * mean + 0.1 * flat.mean(0)
        var = 0.9 * var + 0.1 * flat.var(0, ddof=1)
        if count % 10 == 0:
            poly = fit(mean, np.sqrt(np.maximum(var, FLOOR)))
        poly[2] = np.clip(poly[2], -CLIP, CLIP)
        curve = poly[2] * x**2 + poly[1] * x + poly[0]
        relu = np.maximum(x, 0)
        ys.append(mask * relu + (1 - mask) * curve)
        below = dy * (1 - mask)
        axes = tuple(range(x.ndim - 1))
        slopes = [np.sum(below * x**power, axes) for power in range(3)]
        straight = np.log1p(np.exp(alpha)) * np.sum(dy * (relu - curve), 0)
        poly = poly - RATE * np.stack(slopes)
        alpha = alpha - RATE * straight
    return ys, alpha, mask, poly


def test_a_parameter_that_counts_changes_is_one_that_is_overwritten():
    rng = np.random.default_rng(0)
    xs, dys = rng.normal(size=(2, UPDATES, 5, *SHAPE))
    with jax.enable_x64(True):
        module = activations.AutoReP(
            threshold=THRESHOLD,
            clip_square=CLIP,
            var_min=FLOOR,
            param_dtype=jnp.float64,
        )
        variables = module.init(jax.random.key(0), xs[0])
        params, state = variables["params"], variables["batch_stats"]
        params["alpha"] = params["alpha"] / 4  # some change in a few updates
        alpha = np.asarray(params["alpha"])

        @jax.jit
        def update(params, state, x, dy):
            def apply(params):
                given = {"params": params, "batch_stats": state}
                return module.apply(given, x, mutable=["batch_stats"])

            (y, new), vjp = jax.vjp(apply, params)
            (slopes,) = vjp((dy, jax.tree.map(jnp.zeros_like, new)))
            params = jax.tree.map(lambda p, g: p - RATE * g, params, slopes)
            return params, new["batch_stats"], y

        found = []
        for x, dy in zip(xs, dys, strict=True):
            params, state, y = update(params, state, x, dy)
            found.append(y)
        expected, alpha, mask, poly = by_hand(xs, dys, alpha)
        assert 0.1 < mask.mean() < 0.9
        for t, (y, known) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_allclose(y, known, atol=1e-9, err_msg=str(t))
        np.testing.assert_allclose(params["alpha"], alpha, atol=1e-9)
        now = state["relay_polynomial"] + params["change"] - state["relay_change"]
        np.testing.assert_allclose(now, poly, atol=1e-9)
        # An evaluation goes on from there and keeps nothing.
        y = module.apply({"params": params, "batch_stats": state}, xs[0])
        mask = np.where(mask == 1, alpha > -THRESHOLD, alpha > THRESHOLD)
        poly[2] = np.clip(poly[2], -CLIP, CLIP)
        curve = poly[2] * xs[0] ** 2 + poly[1] * xs[0] + poly[0]
        expected = np.where(mask, np.maximum(xs[0], 0), curve)
        np.testing.assert_allclose(y, expected, atol=1e-9)


def test_budget_of_positions():
    alpha = {"a": jnp.array([0.5, -0.5]), "b": jnp.array([1.0, 2.0])}
    masks = {"a": jnp.array([1.0, 0.0]), "b": jnp.ones(2)}

    def penalty(alpha, budget):
        return activations.relu_budget_penalty(alpha, masks, budget, 8.0)

    value, slopes = jax.value_and_grad(penalty)(alpha, 1)
    assert math.isclose(value, 8 * (3 / 4 - 1 / 4), rel_tol=1e-6)
    for name, slope in slopes.items():
        expected = 8 / 4 * np.log1p(np.exp(np.asarray(alpha[name])))
        np.testing.assert_allclose(slope, expected, rtol=1e-6)
    assert penalty(alpha, 3) == 0


@pytest.mark.parametrize(
    "given", [{"threshold": -1.0}, {"clip_square": -1.0}, {"var_min": -1.0}]
)
def test_negative_numbers(given):
    with pytest.raises(UserError, match="must be at least 0, got -1"):
        activations.AutoReP(**given).init(jax.random.key(0), jnp.zeros((1, 2)))


def test_another_degree():
    with pytest.raises(UserError, match="degree 1 or 2, got 3"):
        activations.AutoReP(degree=3).init(jax.random.key(0), jnp.zeros((1, 2)))
