"""Convolutions against the matrices that they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import reparam
from normjax.core.errors import UserError

RNG = np.random.default_rng(0)


def matrix_of(kernel, size, stride):
    """[M N^2, C (s N)^2] of the convolution with circular padding, entry by entry."""
    k, _, channels, filters = kernel.shape
    side, reach = size * stride, k // 2
    made = np.zeros((size, size, filters, side, side, channels))
    for y, x, a, b in np.ndindex(size, size, k, k):
        row = (y * stride + a - reach) % side
        column = (x * stride + b - reach) % side
        made[y, x, :, row, column] += kernel[a, b].T
    return made.reshape(size * size * filters, -1)


@pytest.mark.parametrize(
    ("channels", "filters", "stride", "k"), [(3, 2, 1, 3), (1, 5, 2, 3)]
)
def test_the_loss_is_the_distance_of_the_matrix(channels, filters, stride, k):
    size = 5 if stride == 1 else 3
    kernel = RNG.normal(size=(k, k, channels, filters)) / k
    matrix = matrix_of(kernel, size, stride)
    rows = filters <= stride**2 * channels
    gram = matrix @ matrix.T if rows else matrix.T @ matrix
    distance = np.square(gram - np.eye(len(gram))).sum() / size**2
    with jax.enable_x64(True):
        given = jnp.asarray(kernel)
        loss = reparam.orthogonal_conv_loss(given, stride)
        values = reparam.conv_singular_values(given, size, stride)
        low, high = reparam.singular_value_bounds(given, stride)
    assert float(loss) == pytest.approx(distance)
    expected = np.linalg.svd(matrix, compute_uv=False)[: len(values)]
    np.testing.assert_allclose(values, expected, atol=1e-10)
    assert low <= values[-1] and values[0] <= high


def test_an_orthogonal_one():
    """A shift of one channel, another shift of the other."""
    kernel = jnp.zeros((3, 3, 2, 2)).at[0, 1, 0, 0].set(1).at[2, 2, 1, 1].set(-1)
    assert reparam.orthogonal_conv_loss(kernel) == 0
    assert reparam.orthogonal_matrix_norm(kernel) == 0
    np.testing.assert_allclose(reparam.conv_singular_values(kernel, 5), 1, rtol=1e-5)
    gradient = jax.grad(reparam.orthogonal_conv_loss)(kernel)
    assert (gradient == 0).all()


def test_the_smaller_product_of_a_matrix():
    wide = RNG.normal(size=(1, 1, 2, 5))
    gram = wide[0, 0] @ wide[0, 0].T - np.eye(2)
    found = reparam.orthogonal_matrix_norm(jnp.asarray(wide))
    assert float(found) == pytest.approx(np.sqrt(np.square(gram).sum()), rel=1e-5)


def test_which_exist():
    assert reparam.orthogonal_conv_exists((3, 3, 1, 9), stride=3)
    assert not reparam.orthogonal_conv_exists((3, 3, 1, 10), stride=4)
    assert not reparam.orthogonal_conv_exists((1, 1, 1, 10), stride=2)


def test_even_kernels_and_small_maps_are_refused():
    with pytest.raises(UserError, match="odd k"):
        reparam.orthogonal_conv_loss(jnp.zeros((2, 2, 1, 1)))
    with pytest.raises(UserError, match="smaller than the kernel"):
        reparam.conv_singular_values(jnp.zeros((5, 5, 1, 1)), 4)
