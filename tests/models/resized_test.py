"""Maps resized as PyTorch resizes them, and blocks that run at another size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import models
from normjax.models.resized import bicubic_matrix, resized


def cubic(samples, place):
    """What four samples around `place` say there, a = -3/4, edges repeated."""
    first, total = int(np.floor(place)), 0.0
    for i in range(first - 1, first + 3):
        x = abs(place - i)
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        far = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
        weight = near if x <= 1 else far
        total += weight * samples[min(max(i, 0), len(samples) - 1)]
    return total


@pytest.mark.parametrize(("old", "new"), [(5, 8), (8, 5), (6, 6), (1, 3)])
def test_bicubic_along_an_axis(old, new):
    samples = np.random.default_rng(0).normal(size=old)
    places = (np.arange(new) + 0.5) * old / new - 0.5
    expected = [cubic(samples, place) for place in places]
    np.testing.assert_allclose(bicubic_matrix(old, new) @ samples, expected, atol=1e-12)


def test_a_map_of_the_size_is_itself_and_rows_are_not_columns(x64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 6, 2)))
    assert resized(x, (4, 6)) is x
    rows, columns = bicubic_matrix(4, 3), bicubic_matrix(6, 9)
    expected = np.einsum("yh,bhwc,xw->byxc", rows, x, columns)
    np.testing.assert_allclose(resized(x, (3, 9)), expected, atol=1e-12)


def test_raft_mlp_takes_images_of_other_sizes():
    size = {"depths": (1, 1), "dims": (4, 8), "num_heads": (1, 1), "mlp_ratio": 2.0}
    patches = {"name": "multi_scale_patches", "stride": 2}
    blocks = tuple({"name": "raft", "grid": (n, n)} for n in (4, 2))
    model = models.build(
        "raft_mlp_s",
        num_classes=3,
        stem={**patches, "kernel_sizes": (2, 4)},
        merge={**patches, "kernel_sizes": (2,)},
        branches=blocks,
        **size,
    )
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape)
    other = jax.ShapeDtypeStruct((1, 11, 14, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, other).shape == (1, 3)
