"""Maps resized inside a network, as PyTorch resizes them."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.core.moments import at_least_float32

_CUBIC = -0.75  # of PyTorch's cubic convolution without antialiasing


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights of bicubic resizing along one axis: [new, old].

    Row i weighs the four samples around (i + 1/2) old / new - 1/2 by the cubic
    convolution kernel with a = -3/4; the sample at the edge stands for those beyond it.
    """
    center = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(center).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(center - (first + tap))
        near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
        far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
        place = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), place), np.where(x <= 1, near, far))
    return weights


def resized(x: jax.Array, grid: tuple[int, ...]) -> jax.Array:
    """x: [B, H, W, C] -> [B, *grid, C], bicubic, in at least float32."""
    old = x.shape[1:3]
    if old == tuple(grid):
        return x
    wide = at_least_float32(x)
    rows, columns = (
        jnp.asarray(bicubic_matrix(*sides), wide.dtype)
        for sides in zip(old, grid, strict=True)
    )
    wide = jnp.einsum("yh,bhwc->bywc", rows, wide)
    return jnp.einsum("xw,bywc->byxc", columns, wide).astype(x.dtype)
