"""GELU of every bfloat16 number against the normal distribution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from normjax import activations

NORMAL = 2.0**-126
"""Below it bfloat16 numbers lose digits."""

SMALL = 16 * NORMAL
"""Below it a factor of the value may be subnormal, which processors flush to zero."""


@pytest.fixture(scope="module")
def numbers():
    """All finite bfloat16 numbers, as such and in float64."""
    every = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)
    finite = every[np.isfinite(every.astype(np.float32))]
    return jnp.asarray(finite), finite.astype(np.float64)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request, monkeypatch):
    """The form that this platform computes, on the one that is there."""

    def chosen(*operands, default, **forms):
        return forms.get(request.param, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)


def in_units(found, exact):
    """The largest distance in units of the last place, and that of small numbers."""
    unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), NORMAL))) - 7)
    error = np.abs(np.asarray(found, np.float64) - exact) / unit
    small = np.abs(exact) < SMALL
    return error[~small].max(), (error * unit)[small].max()


@pytest.mark.usefixtures("platform")
def test_values_are_as_near_as_bfloat16_can_tell(numbers):
    x, wide = numbers
    exact = wide * np.exp(special.log_ndtr(wide))
    y = jax.jit(lambda x: activations.gelu(x))(x)
    assert y.dtype == jnp.bfloat16
    large, small = in_units(y, exact)
    assert large <= 0.505 and small <= SMALL


@pytest.mark.usefixtures("platform")
def test_slopes_are_as_near_as_bfloat16_can_tell(numbers):
    x, wide = numbers
    density = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    # Phi(x) + x phi(x), for negative x without the difference of two large numbers.
    t = np.abs(wide)
    mills = special.erfcx(t / np.sqrt(2)) / 2 - t / np.sqrt(2 * np.pi)
    below = np.exp(-(wide**2) / 2) * mills
    exact = np.where(wide < 0, below, special.ndtr(wide) + wide * density)
    slope = jax.jit(jax.grad(lambda x: activations.gelu(x).sum()))(x)
    large, small = in_units(slope, exact)
    assert large <= 0.505 and small <= SMALL


def test_infinities_and_what_is_no_number():
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, -0.0], jnp.bfloat16)
    values = np.asarray(activations.gelu(x), np.float32)
    np.testing.assert_array_equal(values, [np.inf, 0, np.nan, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_types_are_exact(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = np.linspace(-6, 9, 301, dtype=dtype)
        y = np.asarray(activations.gelu(jnp.asarray(x)))
    exact = x.astype(np.float64) * special.ndtr(x.astype(np.float64))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, exact, atol=8 * np.finfo(dtype).eps, rtol=1e-6)
