"""Rotary positions: products know differences of positions alone, norms stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import mixers
from normjax.core.errors import UserError
from normjax.mixers.ops import rotary

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 2, 5, 3, 8))
PLACES = np.array([[0, 1, 2, 3, 4], [7, 3, 0, 1, 2]])


def turned(x, positions):
    return np.asarray(rotary.rotate_halves(jnp.asarray(x), jnp.asarray(positions)))


@pytest.mark.usefixtures("x64")
def test_halves_turn_as_complex_numbers():
    angles = PLACES[..., None] * 10000.0 ** (-np.arange(4) / 4)
    z = (X[..., :4] + 1j * X[..., 4:]) * np.exp(1j * angles)[:, :, None]
    expected = np.concatenate((z.real, z.imag), -1)
    np.testing.assert_allclose(turned(X, PLACES), expected, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_products_depend_on_differences_of_positions_only():
    def product(shift, distance=PLACES):
        q, k = turned(X, distance + shift), turned(Y, shift * np.ones_like(distance))
        return (q * k).sum(-1)

    np.testing.assert_allclose(product(1000), product(0), atol=1e-11)
    assert np.abs(product(0, PLACES + 1) - product(0)).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_norms_stay():
    angles = rotary.grid_angles(1, 5, 8).reshape(5, 4)
    for y in (turned(X, PLACES), rotary.rotate_pairs(jnp.asarray(X), angles)):
        sizes = (np.linalg.norm(t, axis=-1) for t in (X, y))
        np.testing.assert_allclose(*sizes, rtol=1e-13)


def test_large_positions_keep_float32_angles_in_bfloat16():
    """A bfloat16 has no 1,001: the angle must not be computed in it."""
    places = np.arange(1000, 1005)[None]
    exact = turned(np.float32(X), places)
    low = rotary.rotate_halves(jnp.asarray(X, jnp.bfloat16), jnp.asarray(places))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(low), exact, atol=3e-2)


def test_grid_angles():
    """First half by row, second by column; frequencies from 1 to 1 / 10,000."""
    angles = rotary.grid_angles(3, 4, 12)
    assert angles.shape == (3, 4, 6)
    frequencies = [1.0, 1e-2, 1e-4]
    for row in range(3):
        for column in range(4):
            expected = [f * place for place in (row, column) for f in frequencies]
            np.testing.assert_allclose(angles[row, column], expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_pairs_on_a_grid_depend_on_the_offset_only():
    """Of two positions of a map: down and to the right by the same."""
    angles = rotary.grid_angles(4, 5, 8)
    q, k = RNG.normal(size=(2, 8))

    def at(x, place):
        turned = rotary.rotate_pairs(jnp.asarray(x).reshape(1, 1, 1, 8), angles[place])
        return np.asarray(turned).ravel()

    def product(there, here):
        there, here = ((slice(i, i + 1), j) for i, j in (there, here))
        return at(q, there) @ at(k, here)

    assert product((2, 3), (0, 1)) == pytest.approx(product((3, 4), (1, 2)), rel=1e-12)
    assert abs(product((2, 3), (0, 1)) - product((3, 3), (0, 1))) > 1e-3
    z = (q[::2] + 1j * q[1::2]) * np.exp(1j * angles[1, 2])
    expected = np.stack((z.real, z.imag), -1).ravel()
    np.testing.assert_allclose(at(q, (slice(1, 2), 2)), expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_linearized_products_are_cosines_of_differences():
    theta = RNG.random((3, 8))
    q, k = (
        np.asarray(rotary.linearized(*map(jnp.asarray, (t, PLACES, theta))))
        for t in (X, Y)
    )
    for n in range(5):
        for m in range(5):
            apart = (PLACES[:, n] - PLACES[:, m])[:, None, None]
            expected = (X[:, n] * Y[:, m] * np.cos(apart * theta)).sum(-1)
            actual = (q[:, n] * k[:, m]).sum(-1)
            np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize(
    "name,shape", [("local_attention", (1, 5, 12)), ("rala", (1, 2, 3, 12))]
)
def test_heads_that_cannot_turn_are_named(name, shape):
    mixer = mixers.build(name, num_heads=2)()
    with pytest.raises(UserError, match="heads of 6 channels"):
        jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros(shape))
