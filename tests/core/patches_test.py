"""Both forms of a patch convolution against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.core.patches import patch_convolution

RNG = np.random.default_rng(0)
IMAGES, KERNEL = RNG.normal(size=(2, 6, 8, 3)), RNG.normal(size=(3, 2, 3, 5))
TOGETHER = RNG.normal(size=(2, 2, 4, 5))


def by_sums():
    """The result, and the gradients of its product with TOGETHER."""
    y = np.zeros(TOGETHER.shape)
    dx, dk = np.zeros(IMAGES.shape), np.zeros(KERNEL.shape)
    for i in range(2):
        for j in range(4):
            rows, columns = slice(3 * i, 3 * i + 3), slice(2 * j, 2 * j + 2)
            patch, dy = IMAGES[:, rows, columns], TOGETHER[:, i, j]
            y[:, i, j] = np.einsum("bhwc,hwcf->bf", patch, KERNEL)
            dx[:, rows, columns] = np.einsum("bf,hwcf->bhwc", dy, KERNEL)
            dk += np.einsum("bf,bhwc->hwcf", dy, patch)
    return y, dx, dk


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_values_and_gradients(platform, monkeypatch):
    def chosen(*operands, default, **branches):
        return branches.get(platform, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def total(x, kernel):
        y = patch_convolution(x, kernel, (3, 2), "VALID", **how)
        return jnp.sum(y * TOGETHER), y

    with jax.enable_x64(True):
        grads, y = jax.grad(total, (0, 1), has_aux=True)(
            jnp.asarray(IMAGES), jnp.asarray(KERNEL)
        )
    for found, exact in zip((y, *grads), by_sums(), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
